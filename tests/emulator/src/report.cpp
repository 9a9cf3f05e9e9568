// Messages: code addresses to file and line, threads and kernels to names.
#include <dlfcn.h>
#include <link.h>

#include <cstdio>
#include <sstream>

#include "runtime.h"

// The first byte of this very object, from the linker.
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start;

namespace simt {
namespace {

uintptr_t base_of_object() { return reinterpret_cast<uintptr_t>(&__ehdr_start); }

struct Segments {
  std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
};

Segments segments_of_object() {
  Segments segments;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        std::vector<std::pair<uintptr_t, uintptr_t>> found;
        bool ours = false;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& header = info->dlpi_phdr[i];
          if (header.p_type != PT_LOAD) continue;
          const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
          found.emplace_back(begin, begin + header.p_memsz);
          ours |= base_of_object() >= begin && base_of_object() < begin + header.p_memsz;
        }
        if (ours) static_cast<Segments*>(data)->ranges = found;
        return ours ? 1 : 0;
      },
      &segments);
  return segments;
}

// The output of addr2line, which comes with the compiler, for an address.
std::vector<std::string> addr2line(const char* options, uint32_t offset) {
  Dl_info object;
  if (dladdr(&__ehdr_start, &object) == 0) return {};
  std::ostringstream command;
  command << "addr2line " << options << " -e '" << object.dli_fname << "' 0x" << std::hex << offset
          << " 2>/dev/null";
  FILE* pipe = popen(command.str().c_str(), "r");
  if (pipe == nullptr) return {};
  std::vector<std::string> lines;
  char line[1024];
  while (std::fgets(line, sizeof line, pipe) != nullptr) {
    std::string text = line;
    while (!text.empty() && text.back() == '\n') text.pop_back();
    lines.push_back(text);
  }
  pclose(pipe);
  return lines;
}

// The path relative to the project's root, if the root is known.
std::string shortened(const std::string& path) {
#ifdef SIMT_PROJECT_ROOT
  const std::string root = SIMT_PROJECT_ROOT "/";
  if (path.compare(0, root.size(), root) == 0) return path.substr(root.size());
#endif
  return path;
}

bool is_of_the_shim(const std::string& file) {
  return file.find("cuda/simt/") != std::string::npos ||
         file.find("emulator/src/") != std::string::npos || file.find("??") != std::string::npos ||
         file.find("/include/c++/") != std::string::npos;
}

}  // namespace

uint32_t offset_of_code(const void* pc) {
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(pc) - base_of_object() - 1);
}

std::string place(Site site) { return shortened(site.file) + ":" + std::to_string(site.line); }

// "file:line", and for code that was inlined "< file:line" of its caller.
std::string place(uint32_t pc) {
  std::string text;
  for (const std::string& line : addr2line("-i", pc)) {
    if (is_of_the_shim(line)) continue;
    text += (text.empty() ? "" : " < ") + shortened(line.substr(0, line.find(" (disc")));
  }
  if (!text.empty()) return text;
  std::ostringstream number;
  number << "code offset 0x" << std::hex << pc;
  return number.str();
}

bool in_program(uintptr_t address) {
  static const Segments segments = segments_of_object();
  for (const auto& [begin, end] : segments.ranges) {
    if (address >= begin && address < end) return true;
  }
  return false;
}

std::string thread_name(unsigned thread) {
  const dim3 size = block().size;
  if (size.y == 1 && size.z == 1) return std::to_string(thread);
  return "(" + std::to_string(thread % size.x) + ", " + std::to_string(thread / size.x % size.y) +
         ", " + std::to_string(thread / (size.x * size.y)) + ")";
}

std::string kernel_name() {
  const auto offset =
      static_cast<uint32_t>(reinterpret_cast<uintptr_t>(block().call.kernel) - base_of_object());
  const std::vector<std::string> names = addr2line("-f -C", offset);
  return names.empty() ? "" : names.front();
}

std::string in_kernel() {
  if (block().fibers.empty()) return {};
  const uint3 index = block().index;
  std::string text = "\n  in block (" + std::to_string(index.x) + ", " + std::to_string(index.y) +
                     ", " + std::to_string(index.z) + ")";
  if (current() != nullptr) text += ", thread " + thread_name(current()->thread);
  const std::string name = kernel_name();
  return text + (name.empty() ? "" : "\n  of " + name);
}

}  // namespace simt
