// A row in the registers of up to 32 lanes of a warp.
#pragma once

#include "chunk.cuh"

namespace nanonet::cuda {

// kV classes per lane, `width` apart; the row is a single step.
template <int kK, int kV>
struct LaneRows {
  static constexpr int kElements = kV, kClasses = kV;
  static constexpr bool kExact = kK <= 4, kFast = true, kRereads = false, kStaged = false, finite = true;
  struct Vectors {};
  const Call& p;
  int64_t n;
  int lane, width;
  bool is_row;  // false: a repeated row, of which nothing is stored
  float x[kK + 1][kV];

  // All loads are issued before the first value is converted: x holds their bits meanwhile.
  NN_DEVICE LaneRows(const Call& p, int64_t n, int lane, int width, bool is_row)
      : p(p), n(n), lane(lane), width(width), is_row(is_row) {
    NN_UNROLL
    for (int r = 0; r <= kK; ++r) {
      const bool there = present(r), wide = is_wide(rows(r).dtype);
      const char* row = there ? row_of(rows(r), n) : nullptr;
      NN_UNROLL
      for (int e = 0; e < kV; ++e) {
        const int c = class_at(0, e);
        uint32_t bits = there ? minus_infinity(rows(r).dtype) : 0;
        if (there && c < p.C && wide) bits = reinterpret_cast<const uint32_t*>(row)[c];
        if (there && c < p.C && !wide) bits = reinterpret_cast<const uint16_t*>(row)[c];
        x[r][e] = float_of(bits);
      }
    }
    NN_UNROLL
    for (int r = 0; r <= kK; ++r) {
      const Dtype dtype = rows(r).dtype;
      NN_UNROLL
      for (int e = 0; e < kV; ++e) {
        if (is_wide(dtype)) continue;
        const uint32_t bits = bits_of(x[r][e]);
        x[r][e] = dtype == Dtype::kBfloat16 ? float_of(bits << 16) : float_of_half(uint16_t(bits));
      }
    }
  }

  NN_DEVICE bool present(int r) const { return r < p.K || (r == kK && p.teacher.data); }
  NN_DEVICE const Rows& rows(int r) const { return r == kK ? p.teacher : p.student[r]; }
  NN_DEVICE bool active() const { return is_row; }
  // Whether the fast path can take these logits: none is -inf, or so large that a product could be.
  NN_DEVICE bool in_range() const {
    bool all = true;
    NN_UNROLL
    for (int r = 0; r <= kK; ++r) {
      if (!present(r)) continue;
      NN_UNROLL
      for (int e = 0; e < kV; ++e) all &= !inside(0, e) || fabsf(x[r][e]) < 1e30f;
    }
    return all;
  }
  template <class Body>
  NN_DEVICE void each(bool, Body body) const { body(0); }
  NN_DEVICE int class_at(int, int e) const { return lane + e * width; }
  NN_DEVICE bool inside(int, int e) const { return class_at(0, e) < p.C; }
  NN_DEVICE bool whole(int) const { return p.C == width * kV; }
  NN_DEVICE bool holds(int, int y) const { return y >= 0 && (y & (width - 1)) == lane; }

  NN_DEVICE void load(Vectors&, int, int, float (&to)[kK + 1][kV]) const {
    NN_UNROLL
    for (int r = 0; r <= kK; ++r) {
      NN_UNROLL
      for (int e = 0; e < kV; ++e) to[r][e] = x[r][e];
    }
  }

  NN_DEVICE void put(Vectors&, int, int, const float (&d)[kK + 1][kV], bool) const {
    NN_UNROLL
    for (int k = 0; k < kK; ++k) {
      if (!present(k)) continue;
      char* row = gradient_row(p, k, n);
      NN_UNROLL
      for (int e = 0; e < kV; ++e)
        if (is_row && inside(0, e)) store_one(row, p.student[0].dtype, class_at(0, e), d[k][e]);
    }
  }
};

}  // namespace nanonet::cuda
