// The row of a block, or a block's part of it: in global memory, read by every sweep, or in shared memory, read once.
#pragma once

#include "chunk.cuh"

namespace nanonet::cuda {

// The chunks [begin, end) of a row, dealt to the threads of one block in turn.
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

// A row whose chunks are staged in shared memory, in places of one chunk each; every student and the teacher have
// `places` of them. kBfloat16: all logits are bfloat16, known at compile time; otherwise their dtypes are those of the
// call.
template <int kK, bool kBfloat16>
struct StagedRows {
  static constexpr int kElements = kK > 4 ? 2 : kBfloat16 ? kChunk : 4, kClasses = kChunk;
  static constexpr bool kExact = kBfloat16 && kK <= 4;  // the call has exactly kK students
  static constexpr bool kFast = kK <= 4;   // the registers hold the fast path beside the careful one
  static constexpr bool kRereads = true;   // a repeated sweep costs no registers
  static constexpr bool kStaged = false;   // whether stage() and wait() precede the first sweep
  struct Vectors {
    uint4 logits[kK + 1] = {}, gradient[kK] = {};
  };
  const Call& p;
  int64_t n;
  Grid grid;
  Turns turns;
  char* gradient;  // of student 0
  int64_t gradient_stride;
  char* memory;
  int student_bytes;
  bool next_is_staged = false;
  bool finite = true;  // whether the fast path's sums were finite: of the previous row, then of this one

  NN_DEVICE StagedRows(const Call& p, int64_t n, int part, int parts, char* memory)
      : p(p), n(n), grid(grid_of(p, n)), gradient(p.dstudent ? gradient_row(p, 0, n) : nullptr),
        gradient_stride(p.N * p.C * size_of(dtype(0))), memory(memory) {
    const int each_part = (grid.chunks + parts - 1) / parts, begin = min(part * each_part, grid.chunks);
    turns = {begin, min(begin + each_part, grid.chunks)};
  }
  NN_DEVICE void set_places(int places) { student_bytes = places * kChunk * int(size_of(dtype(0))); }

  NN_DEVICE static bool active() { return true; }
  NN_DEVICE static bool in_range() { return true; }  // logits out of range show in the fast path's sums
  template <class Body>
  NN_DEVICE void each(bool backwards, Body body) const { turns.each(backwards, body); }

  NN_DEVICE bool present(int r) const { return r < (kExact ? kK : p.K) || (r == kK && p.teacher.data); }
  NN_DEVICE const Rows& rows(int r) const { return r == kK ? p.teacher : p.student[r]; }
  NN_DEVICE Dtype dtype(int r) const {
    return kBfloat16 ? Dtype::kBfloat16 : r == kK ? p.teacher.dtype : p.student[0].dtype;
  }
  NN_DEVICE bool whole(int chunk) const { return grid.aligned && grid.whole(chunk); }
  NN_DEVICE int class_at(int chunk, int c) const { return grid.first_class(chunk) + c; }
  NN_DEVICE bool inside(int chunk, int c) const { return class_at(chunk, c) >= 0 && class_at(chunk, c) < grid.C; }
  NN_DEVICE bool holds(int chunk, int y) const {
    return y >= grid.first_class(chunk) && y < grid.first_class(chunk) + kChunk;
  }

  NN_DEVICE uint4* at_place(int r, int place, int at, int student_bytes) const {
    const int within = (place * kChunk + at) * int(size_of(dtype(r)));
    return reinterpret_cast<uint4*>(memory + (r == kK ? p.K : r) * student_bytes + within);
  }

  // Copies a chunk of row n, whose chunks lie as this row's, to a place; complete after copies_wait().
  NN_DEVICE void copy(int64_t n, int chunk, int place) const {
    const auto copy_row = [&](int r, auto copy_vector) {
      if (!present(r)) return;
      const Dtype dtype = this->dtype(r);
      const char* row = row_of(rows(r), n);
      for (int at = 0; at < kChunk; at += classes_of_vector(dtype))
        copy_vector(at_place(r, place, at, student_bytes), row, dtype, at);
    };
    if (whole(chunk)) {
      NN_UNROLL
      for (int r = 0; r <= kK; ++r)
        copy_row(r, [&](uint4* to, const char* row, Dtype dtype, int at) {
          copy_async(to, vector_at(row, dtype, grid, chunk, at));
        });
    } else {
      NN_NO_UNROLL
      for (int r = 0; r <= kK; ++r)
        copy_row(r, [&](uint4* to, const char* row, Dtype dtype, int at) {
          *to = vector_by_classes(row, dtype, grid, chunk, at);
        });
    }
  }

  NN_DEVICE void load_from(int place, Vectors& vectors, int at, float (&x)[kK + 1][kElements]) const {
    const int stride = int(opaque(student_bytes));
    NN_UNROLL
    for (int r = 0; r <= kK; ++r) {
      if (present(r) && begins_vector(dtype(r), at)) vectors.logits[r] = *at_place(r, place, at, stride);
      unpack(vectors.logits[r], dtype(r), at, x[r]);
    }
  }

  // Packs the gradient of a step, and stores the vectors that it completes. whole: whether the chunk is.
  NN_DEVICE void put(Vectors& vectors, int chunk, int at, const float (&d)[kK + 1][kElements], bool whole) const {
    const Dtype dtype = this->dtype(0);
    NN_UNROLL
    for (int k = 0; k < kK; ++k)
      if (present(k)) pack(vectors.gradient[k], dtype, at, d[k]);
    if (!completes_vector<kElements>(dtype, at)) return;
    const int first = class_at(chunk, at + kElements - classes_of_vector(dtype));
    char* row = kExact ? gradient : gradient_row(p, 0, opaque(n));  // other kernels have no registers to keep it
    NN_UNROLL
    for (int k = 0; k < kK; ++k, row += gradient_stride) {
      if (!present(k)) continue;
      if (whole) store_streaming(reinterpret_cast<uint4*>(row + first * size_of(dtype)), vectors.gradient[k]);
      else store_by_classes(row, dtype, grid, first, vectors.gradient[k]);
    }
  }
};

// Bytes of one chunk of every student and the teacher.
inline int64_t bytes_of_chunk(const Call& p) {
  return kChunk * (p.K * size_of(p.student[0].dtype) + (p.teacher.data ? size_of(p.teacher.dtype) : 0));
}

// Chunks that a thread of the sweep kernel prefetches: as many as fit the smallest shared memory of any supported GPU,
// with two blocks per SM up to four students.
constexpr int prefetched_chunks(int K, bool bfloat16) { return K > 4 ? (bfloat16 ? 2 : 1) : bfloat16 ? 3 : 2; }
inline int64_t prefetch_bytes(const Call& p, int chunks, int threads) { return chunks * threads * bytes_of_chunk(p); }

// A row in global memory: every sweep reads it through a ring of prefetched chunks.
template <int kK, bool kBfloat16>
struct GlobalRows : StagedRows<kK, kBfloat16> {
  using Base = StagedRows<kK, kBfloat16>;
  using Base::kElements;
  static constexpr int kPrefetched = prefetched_chunks(kK, kBfloat16);
  int place;  // of the chunk being processed

  NN_DEVICE GlobalRows(const Call& p, int64_t n, int part, int parts, char* memory) : Base(p, n, part, parts, memory) {
    this->set_places(kPrefetched * int(blockDim.x));
  }

  template <class Body>
  NN_DEVICE void each(bool backwards, Body body) {
    const int count = this->turns.count(), step = int(blockDim.x);
    const auto prefetch = [&](int i) {  // the thread's chunk i, into the place of the chunk just processed
      if (i < count) this->copy(opaque(this->n), this->turns.chunk(backwards, i, count), place);
      copies_commit();
      place = place + step < kPrefetched * step ? place + step : int(threadIdx.x);
    };
    place = int(threadIdx.x);
    NN_NO_UNROLL
    for (int i = 0; i < kPrefetched; ++i) prefetch(i);
    NN_NO_UNROLL
    for (int i = 0; i < count; ++i) {
      copies_wait_but<kPrefetched - 1>();
      body(this->turns.chunk(backwards, i, count));
      prefetch(i + kPrefetched);
    }
  }

  NN_DEVICE void load(typename Base::Vectors& vectors, int, int at, float (&x)[kK + 1][kElements]) const {
    this->load_from(place, vectors, at, x);
  }
};

// Bytes of shared memory for one of `parts` parts of every row.
inline int64_t stage_bytes(const Call& p, int parts) {
  const int64_t chunks = (p.C + 2 * kChunk - 2) / kChunk;
  return (chunks + parts - 1) / parts * bytes_of_chunk(p);
}

// A row in shared memory: read once, and replaced by the next row chunk by chunk during its last sweep.
template <int kK, bool kBfloat16>
struct SharedRows : StagedRows<kK, kBfloat16> {
  using Base = StagedRows<kK, kBfloat16>;
  using Base::kElements;
  static constexpr bool kStaged = true;
  int64_t next;  // the row to prefetch; -1: none, or its chunks lie differently

  NN_DEVICE SharedRows(const Call& p, int64_t n, int64_t next, int part, int parts, char* memory)
      : Base(p, n, part, parts, memory), next(-1) {
    this->set_places(this->turns.end - this->turns.begin);
    if (next < p.N && this->grid.same(grid_of(p, next))) this->next = next;
  }

  // Each thread stages the chunks that it will read, so wait() need not synchronise the block.
  NN_DEVICE void stage() const {
    this->each(false, [&](int chunk) { this->copy(this->n, chunk, chunk - this->turns.begin); });
  }
  NN_DEVICE void wait() const { copies_wait(); }

  // In the last sweep, when a chunk is done: copies the same chunk of the next row to its place.
  NN_DEVICE void prefetch_next(int chunk) {
    if (next < 0) return;
    this->copy(opaque(next), chunk, chunk - this->turns.begin);
    this->next_is_staged = true;
  }
  // Another sweep turned out to be needed: stages this row again.
  NN_DEVICE void restage() {
    wait();
    stage();
    wait();
    this->next_is_staged = false;
  }

  NN_DEVICE void load(typename Base::Vectors& vectors, int chunk, int at, float (&x)[kK + 1][kElements]) const {
    this->load_from(chunk - this->turns.begin, vectors, at, x);
  }
};

}  // namespace nanonet::cuda
