// TMA loads: copy a box of a tensor to shared memory row by row, with zeros outside the tensor. The
// bytes are read at the issue and land when no thread can run, or, with options().eager, at once.
#include <cstring>

#include "mbarrier.h"

namespace simt {
namespace {

struct BulkCopy {
  unsigned char* to;
  std::vector<unsigned char> bytes;
  const void* barrier;
  Site site;
};

std::vector<BulkCopy> copies;

static_assert(sizeof(TensorView) <= sizeof(TensorMap));

void land(const BulkCopy& copy) {
  std::memcpy(copy.to, copy.bytes.data(), copy.bytes.size());
  if (kChecked) land_bulk_write(copy.to, copy.bytes.size());
  complete_bytes(copy.barrier, static_cast<unsigned>(copy.bytes.size()));
}

// Copies the tensor's elements in a row of the box into `row`, which is zeroed.
void read_row(const TensorView& view, const int64_t (&at)[4], uint32_t pc, unsigned char* row) {
  int64_t offset = 0;
  for (int i = 1; i < view.rank; ++i) {
    if (at[i] < 0 || at[i] >= view.sizes[i]) return;
    offset += at[i] * static_cast<int64_t>(view.pitches[i - 1]);
  }
  const int64_t begin = std::max<int64_t>(at[0], 0);
  const int64_t end = std::min<int64_t>(at[0] + view.box[0], view.sizes[0]);
  if (begin >= end) return;
  const auto* from = static_cast<const unsigned char*>(view.base) + offset + 2 * begin;
  const auto bytes = static_cast<size_t>(2 * (end - begin));
  if (kChecked) check_access(from, bytes, false, Kind::kPlain, pc);
  std::memcpy(row + 2 * (begin - at[0]), from, bytes);
}

// The box's bytes as they will lie in shared memory.
std::vector<unsigned char> read_box(const TensorView& view, const int* first, uint32_t pc) {
  const size_t row_bytes = 2 * view.box[0];
  size_t rows = 1;
  for (int i = 1; i < view.rank; ++i) rows *= view.box[i];
  std::vector<unsigned char> bytes(rows * row_bytes), row;
  for (size_t number = 0; number < rows; ++number) {
    int64_t at[4] = {first[0], 0, 0, 0};
    size_t rest = number;
    for (int i = 1; i < view.rank; ++i) {
      at[i] = first[i] + static_cast<int64_t>(rest % view.box[i]);
      rest /= view.box[i];
    }
    row.assign(row_bytes, 0);
    read_row(view, at, pc, row.data());
    for (size_t i = 0; i < row_bytes; i += 16) {
      size_t to = number * row_bytes + i;
      if (view.swizzle == Swizzle::k128) to ^= to >> 3 & 0x70;
      std::memcpy(bytes.data() + to, row.data() + i, 16);
    }
  }
  return bytes;
}

}  // namespace

cudaError_t make_tensor_map(TensorMap* map, const TensorView& view) {
  if (view.rank < 2 || view.rank > 4) return cudaErrorInvalidValue;
  if (reinterpret_cast<uintptr_t>(view.base) % 16 != 0) return cudaErrorInvalidValue;
  for (int i = 0; i < view.rank; ++i) {
    if (view.sizes[i] == 0 || view.box[i] == 0 || view.box[i] > 256) return cudaErrorInvalidValue;
    if (i > 0 && (view.pitches[i - 1] % 16 != 0 || view.pitches[i - 1] >> 40 != 0)) {
      return cudaErrorInvalidValue;
    }
  }
  const uint32_t row_bytes = 2 * view.box[0];
  if (row_bytes % 16 != 0) return cudaErrorInvalidValue;
  if (view.swizzle == Swizzle::k128 && row_bytes > 128) return cudaErrorInvalidValue;
  *map = {};
  std::memcpy(map, &view, sizeof view);
  return cudaSuccess;
}

void clear_bulk_copies() { copies.clear(); }

bool land_bulk_copy() {
  if (copies.empty()) return false;
  // The newest one first, in every other block: loads overtake each other.
  const auto next = block().serial % 2 == 0 ? copies.begin() : copies.end() - 1;
  const BulkCopy copy = std::move(*next);
  copies.erase(next);
  land(copy);
  return true;
}

__attribute__((noinline)) void load_box(void* to, const TensorMap& map, uint64_t* address,
                                        const int* at, int rank, Site site) {
  const Busy busy;
  const uint32_t pc = offset_of_code(__builtin_return_address(0));
  TensorView view;
  std::memcpy(&view, &map, sizeof view);
  if (view.rank != rank) fail("TMA: a map of another rank at " + place(site));
  const Mbarrier& barrier = mbarrier_at(address, site);
  if (!barrier.is_visible) {
    fail("TMA: the mbarrier was initialised without mbarrier_init_fence, at " + place(site));
  }
  if (kChecked) check_access(address, sizeof *address, true, Kind::kAtomic, pc);
  BulkCopy copy{static_cast<unsigned char*>(to), read_box(view, at, pc), address, site};
  const size_t bytes = copy.bytes.size();
  if (reinterpret_cast<uintptr_t>(to) % (view.swizzle == Swizzle::k128 ? 1024 : 128) != 0) {
    fail("TMA: a target that is not aligned to 128 bytes, or 1024 with a swizzle, at " +
         place(site));
  }
  const Region* region = find_region(reinterpret_cast<uintptr_t>(to));
  if (region == nullptr || !region->shared ||
      reinterpret_cast<uintptr_t>(to) + bytes > region->end) {
    fail("TMA: the target at " + place(site) + " is not in shared memory");
  }
  if (kChecked) check_bulk_write(to, bytes, barrier.number, barrier.phase, pc);
  if (options().eager) {
    land(copy);
    return;
  }
  std::memset(to, 0xff, bytes);
  copies.push_back(std::move(copy));
}

}  // namespace simt
