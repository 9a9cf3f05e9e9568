// The memory that kernels may touch: registered buffers and shared variables, each with its exact
// bounds and a shadow for the checker.
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "runtime.h"
#include "shadow.h"

namespace simt {
namespace {

constexpr size_t kStaticLimit = 48 << 10, kTotalLimit = 232448;
constexpr size_t kAlignment = 16;  // exactly what SIMT_SHARED promises

std::vector<Region> regions;  // by address
size_t last_found = 0;

struct SharedVariable {
  void* allocation;
  void* begin;
  size_t bytes;
};

using SharedKey = std::tuple<std::string, std::string, int, size_t>;
std::map<SharedKey, SharedVariable> shared_variables;
size_t static_bytes = 0;

// Shared memory as instructions address it: 18 bits. The address of a variable ends in the bits
// that it would have on a GPU.
constexpr size_t kWindow = 256 << 10;
size_t window_used = 0;

void remove_region(uintptr_t begin) {
  const auto found = std::find_if(regions.begin(), regions.end(),
                                  [=](const Region& region) { return region.begin == begin; });
  munmap(found->cells, found->cell_bytes);
  regions.erase(found);
  last_found = 0;
}

// NaN in every floating-point format.
void poison(const SharedVariable& variable) { std::memset(variable.begin, 0xff, variable.bytes); }

SharedVariable& shared_of(const SharedKey& key, size_t bytes, size_t granule,
                          const std::string& name) {
  const auto [entry, is_new] = shared_variables.try_emplace(key);
  SharedVariable& variable = entry->second;
  if (!is_new) return variable;
  // Just past a stricter boundary, so that no kernel relies on more alignment than is promised.
  const size_t offset = window_used % kWindow + kAlignment;
  window_used = (window_used + kAlignment + bytes + 1023) / 1024 * 1024;
  void* allocation = nullptr;
  if (posix_memalign(&allocation, kWindow, offset + bytes) != 0) {
    throw Error("no memory for shared variables");
  }
  variable = {allocation, static_cast<unsigned char*>(allocation) + offset, bytes};
  const auto begin = reinterpret_cast<uintptr_t>(variable.begin);
  if (bytes > 0)
    add_region({begin, begin + bytes, name, true, false, false, 0, nullptr, 0}, granule);
  poison(variable);
  return variable;
}

}  // namespace

void add_region(Region region, size_t granule) {
  region.granule_shift = granule == 1 ? 0 : 1;
  const size_t cells = ((region.end - region.begin) >> region.granule_shift) + 2;
  region.cell_bytes = cells * sizeof(Cell);
  void* memory = mmap(nullptr, region.cell_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw Error("no address space for the checker's shadow");
  region.cells = static_cast<Cell*>(memory);
  const auto after = std::upper_bound(
      regions.begin(), regions.end(), region.begin,
      [](uintptr_t address, const Region& other) { return address < other.begin; });
  regions.insert(after, region);
  last_found = 0;
}

void add_buffer(const void* begin, size_t bytes, size_t element_bytes, bool read_only,
                bool initialised, const std::string& name) {
  if (bytes == 0) return;
  const auto address = reinterpret_cast<uintptr_t>(begin);
  for (Region& region : regions) {
    if (address >= region.end || address + bytes <= region.begin) continue;
    // The same tensor twice, or a view of it: one buffer, with the rights of both.
    region.read_only &= read_only;
    region.initialised |= initialised;
    if (address >= region.begin && address + bytes <= region.end) return;
    throw Error("buffer " + name + " overlaps " + region.name);
  }
  add_region({address, address + bytes, name, false, read_only, initialised, 0, nullptr, 0},
             element_bytes);
}

void clear_buffers() {
  for (const Region& region : regions) munmap(region.cells, region.cell_bytes);
  regions.clear();
  last_found = 0;
}

Region* find_region(uintptr_t address) {
  if (last_found < regions.size() && address >= regions[last_found].begin &&
      address < regions[last_found].end) {
    return &regions[last_found];
  }
  const auto after = std::upper_bound(
      regions.begin(), regions.end(), address,
      [](uintptr_t wanted, const Region& region) { return wanted < region.begin; });
  if (after == regions.begin()) return nullptr;
  const auto found = after - 1;
  if (address >= found->end) return nullptr;
  last_found = static_cast<size_t>(found - regions.begin());
  return &*found;
}

std::string describe_nearest(uintptr_t address) {
  const Region* nearest = nullptr;
  uintptr_t best = 1 << 20;
  for (const Region& region : regions) {
    const uintptr_t distance =
        address < region.begin ? region.begin - address : address - region.end;
    if (distance < best) {
      best = distance;
      nearest = &region;
    }
  }
  if (nearest == nullptr) return "far from every buffer";
  return "at offset " + std::to_string(static_cast<intptr_t>(address - nearest->begin)) + " of " +
         nearest->name + ", which has " + std::to_string(nearest->end - nearest->begin) + " bytes";
}

void start_shared_block() {
  for (const auto& [key, variable] : shared_variables) poison(variable);
}

void free_shared() {
  for (const auto& [key, variable] : shared_variables) {
    if (variable.bytes > 0) remove_region(reinterpret_cast<uintptr_t>(variable.begin));
    std::free(variable.allocation);
  }
  shared_variables.clear();
  static_bytes = window_used = 0;
}

unsigned char* shared_byte(uint32_t address) {
  for (const auto& [key, variable] : shared_variables) {
    const auto begin = reinterpret_cast<uintptr_t>(variable.begin);
    const size_t offset = (address - begin) % kWindow;
    if (offset < variable.bytes) return static_cast<unsigned char*>(variable.begin) + offset;
  }
  return nullptr;
}

bool in_call(uintptr_t address) {
  const Call& call = block().call;
  return address - reinterpret_cast<uintptr_t>(call.arguments) < call.bytes;
}

void* shared_variable(const char* name, size_t bytes, size_t element_bytes, const char* function,
                      Site site) {
  const Busy busy;
  const SharedKey key{std::string(name) + "@" + function, site.file, site.line, bytes};
  if (shared_variables.find(key) == shared_variables.end()) {
    static_bytes += bytes;
    if (static_bytes > kStaticLimit || static_bytes + block().dynamic_bytes > kTotalLimit) {
      fail(std::string("too much shared memory: ") + std::to_string(static_bytes) + " static and " +
           std::to_string(block().dynamic_bytes) + " dynamic bytes with " + name + " at " +
           place(site));
    }
  }
  return shared_of(key, bytes, element_bytes, std::string("shared ") + name).begin;
}

void* dynamic_shared(Site) {
  const Busy busy;
  return shared_of({"", "", 0, 0}, block().dynamic_bytes, 2, "dynamic shared").begin;
}

}  // namespace simt
