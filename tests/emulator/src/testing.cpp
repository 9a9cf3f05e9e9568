#include "testing.h"

namespace simt {
namespace {

std::string last_error;

}  // namespace

void keep_error(const std::string& text) { last_error = text; }

}  // namespace simt

const char* simt_error() { return simt::last_error.c_str(); }

void simt_set_options(int order, uint64_t seed, int eager, int early_exit) {
  simt::options() = {static_cast<simt::Order>(order), seed, eager != 0, early_exit != 0};
}

int simt_add_buffer(const char* name, const void* begin, size_t bytes, size_t element_bytes,
                    int read_only, int initialised) {
  return simt::guarded([=] {
    simt::add_buffer(begin, bytes, element_bytes, read_only != 0, initialised != 0, name);
    return cudaSuccess;
  });
}

void simt_clear_buffers() { simt::clear_buffers(); }

const char* simt_kernel() {
  static std::string name;
  name = simt::kernel_name();
  return name.c_str();
}

void simt_statistics(uint64_t* numbers) {
  const simt::Statistics& statistics = simt::statistics();
  const uint64_t all[] = {statistics.blocks, statistics.switches, statistics.accesses,
                          statistics.products, statistics.row_conflicts};
  for (int i = 0; i < 5; ++i) numbers[i] = all[i];
}
