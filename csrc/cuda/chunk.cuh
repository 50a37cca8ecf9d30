// A chunk: eight consecutive classes of a row, one 16-byte vector of a 16-bit type or two of float32.
//
// A thread processes kStep classes of it at a time, as many as its registers hold. Rows may start at any element. If
// all rows of a call are misaligned by the same number of classes, chunks start at multiples of 16 bytes and only the
// first and the last are clipped; otherwise every class is loaded by itself. Classes outside the row read as -inf and
// are not written. The dtype is a run-time value: a uniform branch, instead of three times as many kernels.
#pragma once

#include "operands.cuh"

namespace nanonet::cuda {

constexpr int kChunk = 8;

// The chunks of a row: chunk i holds the classes [8 i - shift, 8 i - shift + 8), clipped to the row.
struct Grid {
  int C, shift, chunks;
  bool aligned;  // whole chunks start at a multiple of 16 bytes, in every row of the call

  NN_DEVICE int first_class(int chunk) const { return chunk * kChunk - shift; }
  NN_DEVICE bool whole(int chunk) const { return first_class(chunk) >= 0 && first_class(chunk) + kChunk <= C; }
  NN_DEVICE bool same(const Grid& other) const { return aligned && other.aligned && shift == other.shift; }
};

// Classes between the previous multiple of 16 bytes and this address.
NN_DEVICE int misalignment(const char* at, Dtype dtype) {
  return int(reinterpret_cast<uintptr_t>(at) % 16) / int(size_of(dtype));
}

// Both factors are below 2^32 (register.cpp), so one multiplication is enough.
NN_DEVICE const char* row_of(const Rows& rows, int64_t n) {
  return rows.data + uint64_t(uint32_t(n)) * uint32_t(rows.row_bytes);
}

NN_DEVICE char* gradient_row(const Call& p, int k, int64_t n) {
  return p.dstudent + (k * p.N + n) * p.C * size_of(p.student[0].dtype);
}

NN_DEVICE Grid grid_of(const Call& p, int64_t n) {
  const Dtype dtype = p.student[0].dtype;
  const int shift = misalignment(row_of(p.student[0], n), dtype);
  bool alike = true;
  for (int k = 0; k < p.K; ++k) {
    alike &= misalignment(row_of(p.student[k], n), dtype) == shift;
    if (p.dstudent) alike &= misalignment(gradient_row(p, k, n), dtype) == shift;
  }
  if (p.teacher.data) {
    const int step = 16 / int(size_of(p.teacher.dtype));
    alike &= misalignment(row_of(p.teacher, n), p.teacher.dtype) == shift % step;
  }
  const int start = alike ? shift : 0;
  return {p.C, start, (p.C + start + kChunk - 1) / kChunk, alike};
}

NN_DEVICE bool is_wide(Dtype dtype) { return dtype == Dtype::kFloat32; }

NN_DEVICE uint32_t minus_infinity(Dtype dtype) {
  return dtype == Dtype::kFloat32 ? 0xff800000u : dtype == Dtype::kBfloat16 ? 0xff80u : 0xfc00u;
}

// Classes in a 16-byte vector.
NN_DEVICE int classes_of_vector(Dtype dtype) { return is_wide(dtype) ? 4 : 8; }

// Whether a vector begins, or is completed, by the step that starts at class `at` of the chunk.
NN_DEVICE bool begins_vector(Dtype dtype, int at) { return at % classes_of_vector(dtype) == 0; }
template <int kStep>
NN_DEVICE bool completes_vector(Dtype dtype, int at) { return (at + kStep) % classes_of_vector(dtype) == 0; }

NN_DEVICE uint32_t word(const uint4& v, int i) {
  return i & 2 ? (i & 1 ? v.w : v.z) : (i & 1 ? v.y : v.x);
}
NN_DEVICE void set_word(uint4& v, int i, uint32_t value) {
  if (i & 2) (i & 1 ? v.w : v.z) = value;
  else (i & 1 ? v.y : v.x) = value;
}

// Loads a vector class by class. Few vectors need it; the loop is not unrolled, to save registers.
NN_DEVICE uint4 vector_by_classes(const char* row, Dtype dtype, const Grid& grid, int chunk, int at) {
  const int bits = 8 * int(size_of(dtype)), first = grid.first_class(chunk) + at;
  uint64_t low = 0, high = 0;
  NN_NO_UNROLL
  for (int c = first + 128 / bits - 1; c >= first; --c) {
    uint32_t value = minus_infinity(dtype);
    if (c >= 0 && c < grid.C)
      value = is_wide(dtype) ? reinterpret_cast<const uint32_t*>(row)[c] : reinterpret_cast<const uint16_t*>(row)[c];
    high = high << bits | low >> (64 - bits);
    low = low << bits | value;
  }
  return {uint32_t(low), uint32_t(low >> 32), uint32_t(high), uint32_t(high >> 32)};
}

// Its counterpart: stores those classes of a vector that the row has.
NN_DEVICE void store_by_classes(char* row, Dtype dtype, const Grid& grid, int first, uint4 vector) {
  const int bits = 8 * int(size_of(dtype));
  uint64_t low = uint64_t(vector.y) << 32 | vector.x, high = uint64_t(vector.w) << 32 | vector.z;
  NN_NO_UNROLL
  for (int c = first; c < first + 128 / bits; ++c) {
    if (c >= 0 && c < grid.C) {
      if (is_wide(dtype)) reinterpret_cast<uint32_t*>(row)[c] = uint32_t(low);
      else reinterpret_cast<uint16_t*>(row)[c] = uint16_t(low);
    }
    low = low >> bits | high << (64 - bits);
    high >>= bits;
  }
}

// The address of a vector of a whole chunk.
NN_DEVICE const uint4* vector_at(const char* row, Dtype dtype, const Grid& grid, int chunk, int at) {
  return reinterpret_cast<const uint4*>(row + (grid.first_class(chunk) + at) * size_of(dtype));
}

template <int kStep>
NN_DEVICE void unpack(const uint4& vector, Dtype dtype, int at, float (&x)[kStep]) {
  if (is_wide(dtype)) {
    NN_UNROLL
    for (int e = 0; e < kStep; ++e) x[e] = float_of(word(vector, at % 4 + e));
    return;
  }
  NN_UNROLL
  for (int e = 0; e < kStep; e += 2) {
    const uint32_t pair = word(vector, at / 2 + e / 2);
    if (dtype == Dtype::kBfloat16) x[e] = float_of(pair << 16), x[e + 1] = float_of(pair & 0xffff0000u);
    else x[e] = float_of_half(uint16_t(pair)), x[e + 1] = float_of_half(uint16_t(pair >> 16));
  }
}

// Writes a step's values into a vector.
template <int kStep>
NN_DEVICE void pack(uint4& vector, Dtype dtype, int at, const float (&x)[kStep]) {
  if (is_wide(dtype)) {
    NN_UNROLL
    for (int e = 0; e < kStep; ++e) set_word(vector, at % 4 + e, bits_of(x[e]));
    return;
  }
  NN_UNROLL
  for (int e = 0; e < kStep; e += 2) {
    const bool bfloat16 = dtype == Dtype::kBfloat16;
    set_word(vector, at / 2 + e / 2, bfloat16 ? two_bfloat16(x[e], x[e + 1]) : two_halves(x[e], x[e + 1]));
  }
}

NN_DEVICE void store_one(char* row, Dtype dtype, int c, float x) {
  if (is_wide(dtype)) reinterpret_cast<float*>(row)[c] = x;
  else reinterpret_cast<uint16_t*>(row)[c] =
      uint16_t(dtype == Dtype::kBfloat16 ? two_bfloat16(x, 0) : two_halves(x, 0));
}

}  // namespace nanonet::cuda
