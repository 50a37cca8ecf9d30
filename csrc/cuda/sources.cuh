// Where the row of a block group lies: in global memory, read again by every sweep; in shared memory, read once; or in
// registers.
#pragma once

#include "chunk.cuh"

namespace nanonet::cuda {

// The chunks [begin, end) of a row for the threads of one block, in turn.
struct Turns {
  int begin, end;

  NN_DEVICE int first() const { return begin + int(threadIdx.x); }
  NN_DEVICE int count() const { return first() < end ? (end - 1 - first()) / int(blockDim.x) + 1 : 0; }
  NN_DEVICE int chunk(bool backwards, int i, int count) const {
    return first() + (backwards ? count - 1 - i : i) * int(blockDim.x);
  }

  template <class Body>
  NN_DEVICE void each(bool backwards, Body body) const {
    const int count = this->count();
    NN_NO_UNROLL
    for (int i = 0; i < count; ++i) body(chunk(backwards, i, count));
  }
};

// kBfloat16: every row is of that type, which is then known at compile time; else of the type that the call says.
template <int kK, bool kBfloat16>
struct BlockRows {
  static constexpr int kElements = kK > 4 ? 2 : kBfloat16 ? kChunk : 4, kClasses = kChunk;
  static constexpr bool kExact = kBfloat16 && kK <= 4;  // as many students as there is room for
  static constexpr bool kHot = kK <= 4;    // there are registers for the hot loop beside the careful one
  static constexpr bool kRereads = true;  // a sweep more costs no registers
  static constexpr bool kStaged = false;  // lies where stage() has put it
  struct Held {
    uint4 piece[kK + 1] = {}, gradient[kK] = {};
  };
  const Call& p;
  int64_t n;
  Grid grid;
  Turns turns;
  char* gradient;  // of student 0
  int64_t gradient_stride;
  bool next_is_staged = false;
  bool calm = true;  // first of the row before, then of this one: the hot loop's sums were finite

  NN_DEVICE BlockRows(const Call& p, int64_t n, int part, int parts)
      : p(p), n(n), grid(grid_of(p, n)), gradient(p.dstudent ? gradient_row(p, 0, n) : nullptr),
        gradient_stride(p.N * p.C * size_of(dtype(0))) {
    const int each_part = (grid.chunks + parts - 1) / parts, begin = min(part * each_part, grid.chunks);
    turns = {begin, min(begin + each_part, grid.chunks)};
  }

  NN_DEVICE static bool active() { return true; }
  NN_DEVICE static bool tame() { return true; }  // the hot loop's sums tell
  template <class Body>
  NN_DEVICE void each(bool backwards, Body body) const { turns.each(backwards, body); }

  NN_DEVICE bool present(int r) const { return r < (kExact ? kK : p.K) || (r == kK && p.teacher.data); }
  NN_DEVICE const Rows& rows(int r) const { return r == kK ? p.teacher : p.student[r]; }
  NN_DEVICE Dtype dtype(int r) const {
    return kBfloat16 ? Dtype::kBfloat16 : r == kK ? p.teacher.dtype : p.student[0].dtype;
  }
  NN_DEVICE bool whole(int chunk) const { return grid.vectors && grid.whole(chunk); }
  NN_DEVICE int class_at(int chunk, int c) const { return grid.first_class(chunk) + c; }
  NN_DEVICE bool inside(int chunk, int c) const { return class_at(chunk, c) >= 0 && class_at(chunk, c) < grid.C; }
  NN_DEVICE bool holds(int chunk, int y) const {
    return y >= grid.first_class(chunk) && y < grid.first_class(chunk) + kChunk;
  }

  NN_DEVICE void unpack(const Held& held, int at, float (&x)[kK + 1][kElements]) const {
    NN_UNROLL
    for (int r = 0; r <= kK; ++r) cuda::unpack(held.piece[r], dtype(r), at, x[r]);
  }
  NN_DEVICE void put(Held& held, int chunk, int at, const float (&d)[kK + 1][kElements]) const {
    each_gradient(held, chunk, at, d, [&](char* row, Dtype dtype, int first, const uint4& piece) {
      if (whole(chunk)) put_piece(row, dtype, first, piece);
      else put_by_classes(row, dtype, grid, first, piece);
    });
  }
  NN_DEVICE void put_whole(Held& held, int chunk, int at, const float (&d)[kK + 1][kElements]) const {
    each_gradient(held, chunk, at, d, put_piece);
  }
  NN_DEVICE static void put_piece(char* row, Dtype dtype, int first, const uint4& piece) {
    store_once(reinterpret_cast<uint4*>(row + first * size_of(dtype)), piece);
  }
  // put(row, dtype, first, piece): the gradient of each student from class `first` on, where a piece is complete.
  template <class Put>
  NN_DEVICE void each_gradient(Held& held, int chunk, int at, const float (&d)[kK + 1][kElements], Put put) const {
    const Dtype dtype = this->dtype(0);
    NN_UNROLL
    for (int k = 0; k < kK; ++k)
      if (present(k)) pack(held.gradient[k], dtype, at, d[k]);
    if (!completes_piece<kElements>(dtype, at)) return;
    const int first = class_at(chunk, at + kElements - classes_of_piece(dtype));
    char* row = kExact ? gradient : gradient_row(p, 0, forgotten(n));  // registers are dear elsewhere
    NN_UNROLL
    for (int k = 0; k < kK; ++k, row += gradient_stride)
      if (present(k)) put(row, dtype, first, held.gradient[k]);
  }
};

// Rows in shared memory, in places of one chunk each; `places` of them for every row.
template <int kK, bool kBfloat16>
struct StagedRows : BlockRows<kK, kBfloat16> {
  using Base = BlockRows<kK, kBfloat16>;
  using Base::kElements;
  char* memory;
  int student_bytes;

  NN_DEVICE StagedRows(const Call& p, int64_t n, int part, int parts, char* memory)
      : Base(p, n, part, parts), memory(memory) {}
  NN_DEVICE void set_places(int places) { student_bytes = places * kChunk * int(size_of(this->dtype(0))); }

  NN_DEVICE uint4* at_place(int r, int place, int at, int student_bytes) const {
    const int within = (place * kChunk + at) * int(size_of(this->dtype(r)));
    return reinterpret_cast<uint4*>(memory + (r == kK ? this->p.K : r) * student_bytes + within);
  }

  // put(to, row, dtype, at) for each piece of a chunk of row n.
  template <class Put>
  NN_DEVICE void each_piece(int64_t n, int place, Put put) const {
    NN_UNROLL
    for (int r = 0; r <= kK; ++r) {
      if (!this->present(r)) continue;
      const Dtype dtype = this->dtype(r);
      const char* row = row_of(this->rows(r), n);
      for (int at = 0; at < kChunk; at += classes_of_piece(dtype))
        put(at_place(r, place, at, student_bytes), row, dtype, at);
    }
  }
  // A chunk of row n, which lies to the grid as this one does; there after copies_wait().
  NN_DEVICE void copy(int64_t n, int chunk, int place) const {
    if (this->whole(chunk))
      each_piece(n, place, [&](uint4* to, const char* row, Dtype dtype, int at) {
        copy_async(to, piece_at(row, dtype, this->grid, chunk, at));
      });
    else
      each_piece(n, place, [&](uint4* to, const char* row, Dtype dtype, int at) {
        *to = piece_by_classes(row, dtype, this->grid, chunk, at);
      });
  }

  NN_DEVICE void load_from(int place, typename Base::Held& held, int at, float (&x)[kK + 1][kElements]) const {
    const int stride = int(forgotten(student_bytes));
    NN_UNROLL
    for (int r = 0; r <= kK; ++r)
      if (this->present(r) && begins_piece(this->dtype(r), at)) held.piece[r] = *at_place(r, place, at, stride);
    this->unpack(held, at, x);
  }
};

inline int64_t bytes_of_chunk(const Call& p) {
  return kChunk * (p.K * size_of(p.student[0].dtype) + (p.teacher.data ? size_of(p.teacher.dtype) : 0));
}

// Chunks that a thread asks for before it needs them: what the smallest shared memory of any GPU has room for, of two
// blocks up to four students.
constexpr int ahead_of(int K, bool bfloat16) { return K > 4 ? (bfloat16 ? 2 : 1) : bfloat16 ? 3 : 2; }
inline int64_t ahead_bytes(const Call& p, int ahead, int threads) { return ahead * threads * bytes_of_chunk(p); }

// Rows in global memory, read by every sweep.
template <int kK, bool kBfloat16>
struct GlobalRows : StagedRows<kK, kBfloat16> {
  using Base = StagedRows<kK, kBfloat16>;
  using Base::kElements;
  static constexpr int kAhead = ahead_of(kK, kBfloat16);
  int place;  // of the chunk that is worked on

  NN_DEVICE GlobalRows(const Call& p, int64_t n, int part, int parts, char* memory) : Base(p, n, part, parts, memory) {
    this->set_places(kAhead * int(blockDim.x));
  }

  template <class Body>
  NN_DEVICE void each(bool backwards, Body body) {
    const int count = this->turns.count(), step = int(blockDim.x);
    const auto ask = [&](int i) {  // for the thread's chunk i, into the place of the one that is done with
      if (i < count) this->copy(this->n, this->turns.chunk(backwards, i, count), place);
      copies_commit();
      place = place + step < kAhead * step ? place + step : int(threadIdx.x);
    };
    place = int(threadIdx.x);
    NN_NO_UNROLL
    for (int i = 0; i < kAhead; ++i) ask(i);
    NN_NO_UNROLL
    for (int i = 0; i < count; ++i) {
      copies_wait_but<kAhead - 1>();
      body(this->turns.chunk(backwards, i, count));
      ask(i + kAhead);
    }
  }

  NN_DEVICE void load(typename Base::Held& held, int, int at, float (&x)[kK + 1][kElements]) const {
    this->load_from(place, held, at, x);
  }
};

// Bytes of shared memory for the part of each row that one block of `parts` keeps.
inline int64_t stage_bytes(const Call& p, int parts) {
  const int64_t chunks = (p.C + 2 * kChunk - 2) / kChunk;
  return (chunks + parts - 1) / parts * bytes_of_chunk(p);
}

// Rows that are read once, and stay until the next one comes.
template <int kK, bool kBfloat16>
struct SharedRows : StagedRows<kK, kBfloat16> {
  using Base = StagedRows<kK, kBfloat16>;
  using Base::kElements;
  static constexpr bool kStaged = true;
  int64_t next;  // the row for which this one may make room, chunk by chunk; -1: none

  NN_DEVICE SharedRows(const Call& p, int64_t n, int64_t next, int part, int parts, char* memory)
      : Base(p, n, part, parts, memory), next(-1) {
    this->set_places(this->turns.end - this->turns.begin);
    if (next < p.N && this->grid.same(grid_of(p, next))) this->next = next;
  }

  // Every thread stages the chunks that it will read, so it waits for its own copies alone: arrive().
  NN_DEVICE void stage() const {
    this->each(false, [&](int chunk) { this->copy(this->n, chunk, chunk - this->turns.begin); });
  }
  NN_DEVICE void arrive() const { copies_wait(); }

  // Of the last sweep: the chunk is done with, the same of the next row may come. Once for every chunk, or for none.
  NN_DEVICE void make_room(int chunk) {
    if (next < 0) return;
    this->copy(forgotten(next), chunk, chunk - this->turns.begin);
    this->next_is_staged = true;
  }
  // The last sweep was not the last: this row once more.
  NN_DEVICE void stage_again() {
    arrive();
    stage();
    arrive();
    this->next_is_staged = false;
  }

  NN_DEVICE void load(typename Base::Held& held, int chunk, int at, float (&x)[kK + 1][kElements]) const {
    this->load_from(chunk - this->turns.begin, held, at, x);
  }
};

// kV classes a lane, `width` apart; all of a row at once.
template <int kK, int kV>
struct LaneRows {
  static constexpr int kElements = kV, kClasses = kV;
  static constexpr bool kExact = kK <= 4, kHot = true, kRereads = false, kStaged = false, calm = true;
  struct Held {};
  const Call& p;
  int64_t n;
  int lane, width;
  bool is_row;
  float x[kK + 1][kV];

  NN_DEVICE LaneRows(const Call& p, int64_t n, int lane, int width, bool is_row)
      : p(p), n(n), lane(lane), width(width), is_row(is_row) {
    if constexpr (kK <= 4) read_at_once();
    else read_in_turn();
  }

  NN_DEVICE void read_in_turn() {
    NN_UNROLL
    for (int r = 0; r <= kK; ++r) {
      const bool there = present(r);
      const char* row = row_of(rows(r), n);
      NN_UNROLL
      for (int e = 0; e < kV; ++e) {
        const int c = class_at(0, e);
        x[r][e] = !there ? 0 : c < p.C ? element_at(row + c * size_of(rows(r).dtype), rows(r).dtype) : -infinity();
      }
    }
  }

  // As above, but all bits are asked for before the first are waited for; there are registers for four students.
  NN_DEVICE void read_at_once() {
    uint32_t bits[kK + 1][kV] = {};
    NN_UNROLL
    for (int r = 0; r <= kK; ++r) {
      if (!present(r)) continue;
      const char* row = row_of(rows(r), n);
      const bool wide = is_wide(rows(r).dtype);
      NN_UNROLL
      for (int e = 0; e < kV; ++e) {
        const int c = class_at(0, e);
        bits[r][e] = minus_infinity(rows(r).dtype);
        if (c < p.C && wide) bits[r][e] = reinterpret_cast<const uint32_t*>(row)[c];
        if (c < p.C && !wide) bits[r][e] = reinterpret_cast<const uint16_t*>(row)[c];
      }
    }
    NN_UNROLL
    for (int r = 0; r <= kK; ++r) {
      const Dtype dtype = rows(r).dtype;
      NN_UNROLL
      for (int e = 0; e < kV; ++e)
        x[r][e] = is_wide(dtype)                ? float_of(bits[r][e])
                  : dtype == Dtype::kBfloat16 ? float_of(bits[r][e] << 16)
                                              : float_of_half(uint16_t(bits[r][e]));
    }
  }

  NN_DEVICE bool present(int r) const { return r < p.K || (r == kK && p.teacher.data); }
  NN_DEVICE const Rows& rows(int r) const { return r == kK ? p.teacher : p.student[r]; }
  NN_DEVICE bool active() const { return is_row; }
  // Whether the hot loop can take these logits: none at -inf, nor so large that a product with them could be.
  NN_DEVICE bool tame() const {
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

  NN_DEVICE void load(Held&, int, int, float (&to)[kK + 1][kV]) const {
    NN_UNROLL
    for (int r = 0; r <= kK; ++r) {
      NN_UNROLL
      for (int e = 0; e < kV; ++e) to[r][e] = x[r][e];
    }
  }

  NN_DEVICE void put_whole(Held& held, int chunk, int at, const float (&d)[kK + 1][kV]) const { put(held, chunk, at, d); }
  NN_DEVICE void put(Held&, int, int, const float (&d)[kK + 1][kV]) const {
    NN_UNROLL
    for (int k = 0; k < kK; ++k) {
      if (!present(k)) continue;
      char* row = gradient_row(p, k, n);
      NN_UNROLL
      for (int e = 0; e < kV; ++e)
        if (is_row && inside(0, e)) put_one(row, p.student[0].dtype, class_at(0, e), d[k][e]);
    }
  }
};

}  // namespace nanonet::cuda
