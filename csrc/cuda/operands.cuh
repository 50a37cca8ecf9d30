// Reads small operands of any dtype on the device.
#pragma once

#include "call.h"
#include "platform.cuh"

namespace nanonet::cuda {

NN_DEVICE float element_at(const char* at, Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32: return *reinterpret_cast<const float*>(at);
    case Dtype::kFloat64: return float(*reinterpret_cast<const double*>(at));
    case Dtype::kBfloat16: return float_of(uint32_t(*reinterpret_cast<const uint16_t*>(at)) << 16);
    default: return float_of_half(*reinterpret_cast<const uint16_t*>(at));
  }
}

NN_DEVICE float value_at(const Values& values, int64_t i, int64_t k = 0, int64_t n = 0) {
  const int64_t offset = i * values.stride[0] + k * values.stride[1] + n * values.stride[2];
  return element_at(values.data + offset * size_of(values.dtype), values.dtype);
}

}  // namespace nanonet::cuda
