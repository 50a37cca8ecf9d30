// What the registrations of the CPU's and of CUDA's kernels share, through torch's stable ABI alone: dtypes, new tensors,
// and the check of every argument. The ops may be called without nanonet/ops/distill.py and its checks: whatever comes,
// no kernel reads out of bounds or takes a tensor for a larger one.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "problem.h"

namespace nanonet {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// What becomes a ValueError in Python; std::runtime_error and torch's own errors become a RuntimeError.
inline void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

inline Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::Double: return Dtype::kFloat64;
    case ScalarType::BFloat16: return Dtype::kBfloat16;
    case ScalarType::Half: return Dtype::kFloat16;
    default: throw std::runtime_error("nanonet: expected float32, float64, bfloat16 or float16");
  }
}

inline int32_t dtype_code(Dtype dtype) {
  static const int32_t codes[] = {aoti_torch_dtype_float32(), aoti_torch_dtype_float64(), aoti_torch_dtype_bfloat16(),
                                  aoti_torch_dtype_float16()};
  return codes[int(dtype)];
}

// torch::stable::empty looks its op up by name at every call; this does not.
inline Tensor new_tensor(torch::headeronly::IntHeaderOnlyArrayRef sizes, Dtype dtype, int32_t device_type,
                         int32_t device) {
  int64_t strides[64], elements = 1;
  for (size_t i = sizes.size(); i-- > 0; elements *= sizes.begin()[i]) strides[i] = elements;
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.begin(), strides, dtype_code(dtype),
                                                  device_type, device, &handle));
  return Tensor(handle);
}

inline bool has_shape(const Tensor& tensor, std::initializer_list<int64_t> sizes) {
  if (tensor.dim() != int64_t(sizes.size())) return false;
  for (size_t i = 0; i < sizes.size(); ++i)
    if (tensor.size(int64_t(i)) != sizes.begin()[i]) return false;
  return true;
}

inline int32_t device_type_of(const Tensor& tensor) {
  int32_t type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  return type;
}

inline bool same_device(const Tensor& one, const Tensor& other) {
  return device_type_of(one) == device_type_of(other) && one.get_device_index() == other.get_device_index();
}

inline void check_logits(const Tensor& student, const Optional& teacher, const Optional& label, double temperature,
                         int64_t divergence) {
  require(student.dim() == 3 && student.size(0) >= 1 && student.size(2) >= 1,
          "student: expected (K,N,C) with K >= 1 and C >= 1");
  dtype_of(student);
  int64_t bytes = 8;  // a gradient of float64, or more: the kernels count in int64
  for (int64_t dim = 0; dim < 3; ++dim)
    require(!__builtin_mul_overflow(bytes, student.size(dim) + 1, &bytes), "student: too large");
  const int64_t N = student.size(1), C = student.size(2);
  if (teacher) {
    require(has_shape(*teacher, {N, C}), "teacher: expected (N,C) for a student of (K,N,C)");
    require(same_device(*teacher, student), "teacher: expected on student's device");
    dtype_of(*teacher);
  }
  if (label) {
    require(has_shape(*label, {N}), "label: expected (N,) for a student of (K,N,C)");
    require(same_device(*label, student), "label: expected on student's device");
    require(label->scalar_type() == ScalarType::Long, "label: expected int64");
  }
  require(temperature > 0, "temperature: expected a number above 0");
  require(divergence >= 0 && divergence < kDivergences, "divergence: no such number");
}

// What weighs the terms of check_logits' student.
inline void check_weights(const Tensor& student, const Tensor& weights, const Optional& row_weight,
                          const Optional& denominators) {
  const int64_t K = student.size(0), N = student.size(1);
  require(has_shape(weights, {3}) && same_device(weights, student), "weights: expected (3,) on student's device");
  dtype_of(weights);
  if (row_weight) {
    require(has_shape(*row_weight, {N}) || has_shape(*row_weight, {K, N}), "row_weight: expected (N,) or (K,N)");
    require(same_device(*row_weight, student), "row_weight: expected on student's device");
    dtype_of(*row_weight);
  }
  if (denominators) {
    require(has_shape(*denominators, {2}) || has_shape(*denominators, {2, K}), "denominators: expected (2,) or (2,K)");
    require(same_device(*denominators, student), "denominators: expected on student's device");
    dtype_of(*denominators);
  }
}

// What distill_terms returned of check_logits' student; real: what statistics are in.
inline void check_backward(const Tensor& dterms, const Tensor& student, const Tensor& stats, Dtype real) {
  const int64_t K = student.size(0), N = student.size(1);
  require(has_shape(dterms, {3, K, N}) && same_device(dterms, student), "dterms: expected (3,K,N) on student's device");
  require(has_shape(stats, {K + 1, N, kStats}) && same_device(stats, student) && dtype_of(stats) == real,
          "stats: expected what distill_terms returned");
  dtype_of(dterms);
}

inline void check_dstudent(const Tensor& dstudent, const Tensor& student) {
  require(has_shape(dstudent, {student.size(0), student.size(1), student.size(2)}) && dstudent.is_contiguous() &&
              same_device(dstudent, student) && dtype_of(dstudent) == dtype_of(student),
          "dstudent: expected a contiguous tensor of student's shape and dtype");
}

inline void check_scale(const Tensor& dstudent, const Tensor& dloss) {
  require(dstudent.is_contiguous(), "dstudent: expected the contiguous gradient that distill_loss made");
  require(dloss.numel() == 1 && same_device(dloss, dstudent), "dloss: expected one number on dstudent's device");
  dtype_of(dstudent), dtype_of(dloss);
}

}  // namespace nanonet
