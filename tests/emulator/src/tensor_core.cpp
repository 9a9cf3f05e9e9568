// ldmatrix and mma.sync, whose fragments are laid out over the warp as the PTX ISA says.
#include <cstring>

#include "runtime.h"

namespace simt {
namespace {

struct LoadArguments {
  const unsigned char* row;
  uint32_t to[4];
  bool transposed;
};

void require_whole_warp(unsigned mask, const char* operation) {
  if (mask != 0xffffffff) {
    fail(std::string(operation) + " by a warp of fewer than 32 threads at " +
         place(current()->site));
  }
}

uint32_t element(const LoadArguments& row, unsigned column) {
  uint16_t bits;
  std::memcpy(&bits, row.row + 2 * column, sizeof bits);
  return bits;
}

// The rows of a matrix should lie in different groups of four banks.
void count_conflicts(const LoadArguments* const* rows) {
  unsigned seen = 0;
  for (int i = 0; i < 8; ++i) {
    const unsigned group = 1u << (reinterpret_cast<uintptr_t>(rows[i]->row) / 16 % 8);
    statistics().row_conflicts += (seen & group) != 0;
    seen |= group;
  }
}

void finish_load(void* const* arguments, unsigned mask) {
  require_whole_warp(mask, "ldmatrix");
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    const LoadArguments* rows[8];
    for (unsigned i = 0; i < 8; ++i) {
      rows[i] = static_cast<const LoadArguments*>(arguments[8 * matrix + i]);
    }
    count_conflicts(rows);
    for (unsigned lane = 0; lane < 32; ++lane) {
      auto& load = *static_cast<LoadArguments*>(arguments[lane]);
      const unsigned row = lane / 4, pair = 2 * (lane % 4);
      load.to[matrix] = load.transposed
                            ? element(*rows[pair], row) | element(*rows[pair + 1], row) << 16
                            : element(*rows[row], pair) | element(*rows[row], pair + 1) << 16;
    }
  }
}

struct ProductArguments {
  float acc[4];
  uint32_t a[4], b[2];
  float (*widen)(uint16_t);
};

uint16_t half_of(uint32_t pair, unsigned which) {
  return static_cast<uint16_t>(which == 0 ? pair & 0xffff : pair >> 16);
}

// D of 16 rows and 8 columns: lane t has columns 2(t % 4) and +1 of rows t / 4 and +8.
template <int kDepth>
void add_product(void* const* arguments, const float (&a)[16][kDepth],
                 const float (&b)[kDepth][8]) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    auto& own = *static_cast<ProductArguments*>(arguments[lane]);
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = lane / 4 + 8 * (i >> 1), column = 2 * (lane % 4) + (i & 1);
      for (unsigned k = 0; k < kDepth; ++k) own.acc[i] += a[row][k] * b[k][column];
    }
  }
}

void finish_product(void* const* arguments, unsigned mask) {
  require_whole_warp(mask, "mma.sync");
  ++statistics().products;
  float a[16][16], b[16][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const ProductArguments*>(arguments[lane]);
    const unsigned group = lane / 4, pair = 2 * (lane % 4);
    for (unsigned which = 0; which < 2; ++which) {
      for (unsigned i = 0; i < 4; ++i) {
        a[group + 8 * (i & 1)][pair + 8 * (i >> 1) + which] = own.widen(half_of(own.a[i], which));
      }
      for (unsigned i = 0; i < 2; ++i) {
        b[pair + 8 * i + which][group] = own.widen(half_of(own.b[i], which));
      }
    }
  }
  add_product(arguments, a, b);
}

// The bits that TF32 lacks are ignored.
float tf32_of(uint32_t bits) { return from_bits(bits & ~0x1fffu); }

void finish_tf32_product(void* const* arguments, unsigned mask) {
  require_whole_warp(mask, "mma.sync");
  ++statistics().products;
  float a[16][8], b[8][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const ProductArguments*>(arguments[lane]);
    const unsigned group = lane / 4, k = lane % 4;
    for (unsigned i = 0; i < 4; ++i) a[group + 8 * (i & 1)][k + 4 * (i >> 1)] = tf32_of(own.a[i]);
    for (unsigned i = 0; i < 2; ++i) b[k + 4 * i][group] = tf32_of(own.b[i]);
  }
  add_product(arguments, a, b);
}

}  // namespace

__attribute__((noinline)) void ldmatrix(uint32_t* to, const void* row, bool transposed, Site site) {
  const Busy busy;
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    fail("ldmatrix: a row that is not aligned to 16 bytes at " + place(site));
  }
#if !defined(__SANITIZE_ADDRESS__)
  const Region* region = find_region(reinterpret_cast<uintptr_t>(row));
  if (region == nullptr || !region->shared) {
    fail("ldmatrix: the row at " + place(site) + " is not in shared memory");
  }
  check_access(row, 16, false, Kind::kPlain, offset_of_code(__builtin_return_address(0)));
#endif
  LoadArguments arguments{static_cast<const unsigned char*>(row), {}, transposed};
  meet(0xffffffff, transposed ? "ldmatrix.trans" : "ldmatrix", site, &arguments, finish_load);
  std::memcpy(to, arguments.to, sizeof arguments.to);
}

namespace {

void multiply(float* acc, const uint32_t* a, const uint32_t* b, float (*widen)(uint16_t), Site site,
              void (*finish)(void* const*, unsigned)) {
  const Busy busy;
  ProductArguments arguments{{}, {}, {}, widen};
  std::memcpy(arguments.acc, acc, sizeof arguments.acc);
  std::memcpy(arguments.a, a, sizeof arguments.a);
  std::memcpy(arguments.b, b, sizeof arguments.b);
  meet(0xffffffff, "mma.sync", site, &arguments, finish);
  std::memcpy(acc, arguments.acc, sizeof arguments.acc);
}

}  // namespace

void mma(float* acc, const uint32_t* a, const uint32_t* b, float (*widen)(uint16_t), Site site) {
  multiply(acc, a, b, widen, site, finish_product);
}

void mma_tf32(float* acc, const uint32_t* a, const uint32_t* b, Site site) {
  multiply(acc, a, b, nullptr, site, finish_tf32_product);
}

}  // namespace simt
