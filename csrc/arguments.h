// What a call of the loss ops brings, in any shape and layout that nanonet/ops documents: its sizes, checked, and its
// tensors as the row kernels take them. For tensors of the CPU.
#pragma once

#include <array>
#include <vector>

#include "memory.h"
#include "stable.h"

namespace nanonet {

constexpr int64_t kMostDims = 64;  // torch's own limit

// student (K,...,C), or (...,C) of one student; "..." is the leading shape, of N rows in all.
struct Shape {
  int64_t K = 1, N = 1, C, dims;  // dims: of the leading shape
  bool stacked;                   // student has a dimension of K
  std::array<int64_t, kMostDims> leading;

  bool is(const Tensor& tensor, int64_t first, int64_t last) const {
    const auto sizes = tensor.sizes();
    if (int64_t(sizes.size()) != first + dims + last) return false;
    for (int64_t i = 0; i < dims; ++i)
      if (sizes[size_t(first + i)] != leading[size_t(i)]) return false;
    return true;
  }
};

// From the teacher's or the label's shape where there is one; count: of separate students, 0: one tensor of them all.
inline Shape shape_of(const Tensor& student, size_t count, const Optional& teacher, const Optional& label) {
  Shape shape;
  const auto sizes = student.sizes();
  const int64_t dims = int64_t(sizes.size());
  shape.dims = count > 0 ? dims - 1 : teacher ? teacher->dim() - 1 : label ? label->dim() : dims - 2;
  shape.stacked = count == 0 && dims - 1 != shape.dims;
  require(dims >= 1 && shape.dims >= 0 && dims - 1 - shape.stacked == shape.dims,
          "student: expected (K,...,C), or (...,C) like the teacher");
  shape.K = shape.stacked ? sizes[0] : count > 0 ? int64_t(count) : 1;
  shape.C = sizes[size_t(dims - 1)];
  require(shape.K >= 1 && shape.C >= 1, "student: expected (K,...,C) with K >= 1 and C >= 1");
  int64_t bytes = 64;  // more than any array of the kernels has for each element: they count in int64
  const auto count_in = [&](int64_t size) {
    require(!__builtin_mul_overflow(bytes, size + 1, &bytes), "student: too large");
  };
  count_in(shape.K), count_in(shape.C);
  for (int64_t i = 0; i < shape.dims; ++i) {
    const int64_t size = sizes[size_t(shape.stacked + i)];
    shape.leading[size_t(i)] = size;
    shape.N *= size;
    count_in(size);
  }
  if (teacher) {
    require(shape.is(*teacher, 0, 1), "teacher: expected (...,C) of student's leading shape");
    require(teacher->size(shape.dims) == shape.C, "teacher: expected student's classes: slice it, teacher[..., :C]");
  }
  if (label) require(shape.is(*label, 0, 0), "label: expected student's leading shape");
  return shape;
}

// Where the rows of a tensor lie whose dimensions [first, first + dims) are the leading shape: in at most two levels.
struct Steps {
  bool found = true;
  int64_t stride = 0, inner = 0, outer_stride = 0;  // in elements; inner 0: one level
};

inline Steps steps_of(const Tensor& tensor, int64_t first, int64_t dims) {
  Steps steps;
  const auto all_sizes = tensor.sizes(), all_strides = tensor.strides();
  int64_t levels = 0, sizes[2], strides[2];
  for (int64_t i = first + dims; i-- > first;) {
    const int64_t size = all_sizes[size_t(i)], stride = all_strides[size_t(i)];
    if (size == 1) continue;
    if (levels > 0 && stride == strides[levels - 1] * sizes[levels - 1]) {
      sizes[levels - 1] *= size;
    } else if (levels == 2) {
      return {false};
    } else {
      sizes[levels] = size, strides[levels] = stride, ++levels;
    }
  }
  if (levels > 0) steps.stride = strides[0];
  if (levels > 1) steps.inner = sizes[0], steps.outer_stride = strides[1];
  return steps;
}

// The tensor itself where the kernels can read its rows in place, else a copy.
inline Tensor readable(const Tensor& logits, int64_t first, int64_t dims) {
  const int64_t last = logits.dim() - 1;
  const bool dense = logits.stride(last) == 1 || logits.size(last) == 1;
  return dense && steps_of(logits, first, dims).found ? logits : torch::stable::contiguous(logits);
}

// Of the first student, where there are several.
inline Rows rows_of(const Tensor& logits, int64_t first, int64_t dims) {
  const Dtype dtype = dtype_of(logits);
  const Steps steps = steps_of(logits, first, dims);
  const int64_t size = size_of(dtype);
  const char* data = static_cast<const char*>(logits.const_data_ptr());
  return {data, steps.stride * size, dtype, steps.inner, steps.outer_stride * size};
}

// A number of any dtype that a weight or a label may have.
inline double number_at(const void* data, ScalarType type, int64_t offset) {
  using namespace torch::headeronly;
  switch (type) {
    case ScalarType::Float: return static_cast<const float*>(data)[offset];
    case ScalarType::Double: return static_cast<const double*>(data)[offset];
    case ScalarType::BFloat16: return static_cast<const BFloat16*>(data)[offset];
    case ScalarType::Half: return static_cast<const Half*>(data)[offset];
    case ScalarType::Bool: return static_cast<const uint8_t*>(data)[offset] != 0;
    case ScalarType::Byte: return static_cast<const uint8_t*>(data)[offset];
    case ScalarType::Char: return static_cast<const int8_t*>(data)[offset];
    case ScalarType::Short: return static_cast<const int16_t*>(data)[offset];
    case ScalarType::Int: return static_cast<const int32_t*>(data)[offset];
    case ScalarType::Long: return double(static_cast<const int64_t*>(data)[offset]);
    default: throw std::runtime_error("nanonet: expected a real, an integer or a bool tensor");
  }
}

// Calls body(offset) for every element, in order.
template <class Body>
void each_element(const Tensor& tensor, Body body) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const size_t dims = sizes.size();
  const int64_t inner = dims > 0 ? sizes[dims - 1] : 1, step = dims > 0 ? strides[dims - 1] : 0;
  const int64_t elements = tensor.numel();
  std::array<int64_t, kMostDims> at;
  for (size_t d = 0; d < dims; ++d) at[d] = 0;
  int64_t offset = 0;
  for (int64_t done = 0; done < elements; done += inner) {
    for (int64_t i = 0; i < inner; ++i) body(offset + i * step);
    for (size_t d = dims - 1; d-- > 0 && dims > 1;) {
      offset += strides[d];
      if (++at[d] < sizes[d]) break;
      offset -= strides[d] * sizes[d];
      at[d] = 0;
    }
  }
}

// All elements as a contiguous array of F.
template <class F>
void copy_values(const Tensor& from, F* to) {
  const ScalarType type = from.scalar_type();
  const void* data = from.const_data_ptr();
  if (type == ScalarType::Float)  // almost always
    each_element(from, [&](int64_t offset) { *to++ = F(static_cast<const float*>(data)[offset]); });
  else
    each_element(from, [&](int64_t offset) { *to++ = F(number_at(data, type, offset)); });
}

inline void copy_labels(const Tensor& from, int64_t* to) {
  const void* data = from.const_data_ptr();
  const bool narrow = from.scalar_type() == ScalarType::Int;
  each_element(from, [&](int64_t offset) {
    *to++ = narrow ? static_cast<const int32_t*>(data)[offset] : static_cast<const int64_t*>(data)[offset];
  });
}

// "label[1, 3] is 7: ...", where a label is no class.
inline void check_labels(const int64_t* label, const Shape& shape) {
  for (int64_t n = 0; n < shape.N; ++n) {
    const int64_t y = label[n];
    if (y == kUnlabelled || (y >= 0 && y < shape.C)) continue;
    std::string index;
    int64_t rest = n;
    for (int64_t i = shape.dims; i-- > 0; rest /= shape.leading[size_t(i)])
      index = std::to_string(rest % shape.leading[size_t(i)]) + (index.empty() ? "" : ", ") + index;
    throw std::invalid_argument("label[" + index + "] is " + std::to_string(y) +
                             ": expected -100 (unlabelled) or 0 <= label < " + std::to_string(shape.C));
  }
}

}  // namespace nanonet
