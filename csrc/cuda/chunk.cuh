// Eight consecutive classes of a row: one 16-byte piece of a 16-bit type, two of float32.
//
// They are worked on kStep at a time, as many as the registers hold: several steps share a piece. Rows start anywhere.
// Where all rows of a call leave the 16-byte grid by the same number of classes, chunks follow the grid and only the
// first and the last are clipped; else every class is loaded alone. What lies outside the row reads as -inf and is not
// written. The dtype is known at run time: a branch that all threads take alike, against three times as many kernels.
#pragma once

#include "operands.cuh"

namespace nanonet::cuda {

constexpr int kChunk = 8;

// Where the chunks of a row lie: chunk i holds the classes [8 i - shift, 8 i - shift + 8) that the row has.
struct Grid {
  int C, shift, chunks;
  bool vectors;  // whole chunks are aligned in every row

  NN_DEVICE int first_class(int chunk) const { return chunk * kChunk - shift; }
  NN_DEVICE bool whole(int chunk) const { return first_class(chunk) >= 0 && first_class(chunk) + kChunk <= C; }
  NN_DEVICE bool same(const Grid& other) const { return vectors && other.vectors && shift == other.shift; }
};

// Classes by which an address is past the 16-byte grid.
NN_DEVICE int past_grid(const char* at, Dtype dtype) {
  return int(reinterpret_cast<uintptr_t>(at) % 16) / int(size_of(dtype));
}

// Rows and bytes of a row are fewer than 2^32 (register.cpp): one multiplication.
NN_DEVICE const char* row_of(const Rows& rows, int64_t n) {
  return rows.data + uint64_t(uint32_t(n)) * uint32_t(rows.row_bytes);
}

NN_DEVICE char* gradient_row(const Call& p, int k, int64_t n) {
  return p.dstudent + (k * p.N + n) * p.C * size_of(p.student[0].dtype);
}

NN_DEVICE Grid grid_of(const Call& p, int64_t n) {
  const Dtype dtype = p.student[0].dtype;
  const int shift = past_grid(row_of(p.student[0], n), dtype);
  bool alike = true;
  for (int k = 0; k < p.K; ++k) {
    alike &= past_grid(row_of(p.student[k], n), dtype) == shift;
    if (p.dstudent) alike &= past_grid(gradient_row(p, k, n), dtype) == shift;
  }
  if (p.teacher.data) {
    const int step = 16 / int(size_of(p.teacher.dtype));
    alike &= past_grid(row_of(p.teacher, n), p.teacher.dtype) == shift % step;
  }
  const int start = alike ? shift : 0;
  return {p.C, start, (p.C + start + kChunk - 1) / kChunk, alike};
}

NN_DEVICE bool is_wide(Dtype dtype) { return dtype == Dtype::kFloat32; }

NN_DEVICE uint32_t minus_infinity(Dtype dtype) {
  return dtype == Dtype::kFloat32 ? 0xff800000u : dtype == Dtype::kBfloat16 ? 0xff80u : 0xfc00u;
}

// Classes in a piece.
NN_DEVICE int classes_of_piece(Dtype dtype) { return is_wide(dtype) ? 4 : 8; }

// Whether a piece begins, or is complete, with the step that starts at class `at` of the chunk.
NN_DEVICE bool begins_piece(Dtype dtype, int at) { return at % classes_of_piece(dtype) == 0; }
template <int kStep>
NN_DEVICE bool completes_piece(Dtype dtype, int at) { return (at + kStep) % classes_of_piece(dtype) == 0; }

NN_DEVICE uint32_t word(const uint4& piece, int i) {
  return i & 2 ? (i & 1 ? piece.w : piece.z) : (i & 1 ? piece.y : piece.x);
}
NN_DEVICE void set_word(uint4& piece, int i, uint32_t value) {
  if (i & 2) (i & 1 ? piece.w : piece.z) = value;
  else (i & 1 ? piece.y : piece.x) = value;
}

// Class by class, in loops that stay loops: few pieces need it, and unrolled it would hold the registers of all.
NN_DEVICE uint4 piece_by_classes(const char* row, Dtype dtype, const Grid& grid, int chunk, int at) {
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

NN_DEVICE void put_by_classes(char* row, Dtype dtype, const Grid& grid, int first, uint4 piece) {
  const int bits = 8 * int(size_of(dtype));
  uint64_t low = uint64_t(piece.y) << 32 | piece.x, high = uint64_t(piece.w) << 32 | piece.z;
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

// The address of a piece in a row whose chunks are whole.
NN_DEVICE const uint4* piece_at(const char* row, Dtype dtype, const Grid& grid, int chunk, int at) {
  return reinterpret_cast<const uint4*>(row + (grid.first_class(chunk) + at) * size_of(dtype));
}

template <int kStep>
NN_DEVICE void unpack(const uint4& piece, Dtype dtype, int at, float (&x)[kStep]) {
  if (is_wide(dtype)) {
    NN_UNROLL
    for (int e = 0; e < kStep; ++e) x[e] = float_of(word(piece, at % 4 + e));
    return;
  }
  NN_UNROLL
  for (int e = 0; e < kStep; e += 2) {
    const uint32_t pair = word(piece, at / 2 + e / 2);
    if (dtype == Dtype::kBfloat16) x[e] = float_of(pair << 16), x[e + 1] = float_of(pair & 0xffff0000u);
    else x[e] = float_of_half(uint16_t(pair)), x[e + 1] = float_of_half(uint16_t(pair >> 16));
  }
}

// Adds a step to a piece.
template <int kStep>
NN_DEVICE void pack(uint4& piece, Dtype dtype, int at, const float (&x)[kStep]) {
  if (is_wide(dtype)) {
    NN_UNROLL
    for (int e = 0; e < kStep; ++e) set_word(piece, at % 4 + e, bits_of(x[e]));
    return;
  }
  NN_UNROLL
  for (int e = 0; e < kStep; e += 2) {
    const bool bfloat16 = dtype == Dtype::kBfloat16;
    set_word(piece, at / 2 + e / 2, bfloat16 ? two_bfloat16(x[e], x[e + 1]) : two_halves(x[e], x[e + 1]));
  }
}

NN_DEVICE void put_one(char* row, Dtype dtype, int c, float x) {
  if (is_wide(dtype)) reinterpret_cast<float*>(row)[c] = x;
  else reinterpret_cast<uint16_t*>(row)[c] =
      uint16_t(dtype == Dtype::kBfloat16 ? two_bfloat16(x, 0) : two_halves(x, 0));
}

}  // namespace nanonet::cuda
