#include "fprop.h"

#include "contraction.h"

namespace genimg::cpu::GENIMG_ISA {

void conv_fprop_f32(const ConvCall& call, float* scratch, int64_t begin, int64_t end) {
  contract<float>(call, ConvDirection::fprop, scratch, begin, end);
}

void conv_fprop_bf16(const ConvCall& call, float* scratch, int64_t begin, int64_t end) {
  contract<uint16_t>(call, ConvDirection::fprop, scratch, begin, end);
}

}  // namespace genimg::cpu::GENIMG_ISA
