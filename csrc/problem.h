// What the row kernels are told: pointers, strides and sizes. No torch, no instruction set.
#pragma once

#include <cstdint>

namespace nanonet {

enum class Dtype : int32_t { kFloat32, kFloat64, kBfloat16, kFloat16 };

constexpr int64_t size_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

// The numbers of nanonet/reference.py; divergence.h says what each one is.
enum Divergence : int64_t {
  kKl,
  kReverseKl,
  kJs,
  kMse,
  kSymmetricKl,
  kSkewKl,
  kSkewReverseKl,
  kTv,
  kCrossEntropy,
  kDivergences,
};

// Divergences whose gradient is q - p: they share the fast kernels. Their slopes sum to -1, which stats leave out.
constexpr bool has_kl_slopes(int64_t divergence) { return divergence == kKl || divergence == kCrossEntropy; }

constexpr int64_t kUnlabelled = -100;
constexpr int64_t kStats = 4;  // of a row: maximum, log-sum-exp below it at the temperature and at 1, sum of slopes

// One matrix (N,C) of logits; the last dimension is contiguous. Rows may lie in groups of `inner`, as those of a slice do.
struct Rows {
  const char* data;
  int64_t row_bytes;
  Dtype dtype;
  int64_t inner = 0, outer_bytes = 0;  // inner 0: all rows are row_bytes apart

  const char* row(int64_t n) const {
    return inner == 0 ? data + n * row_bytes : data + n / inner * outer_bytes + n % inner * row_bytes;
  }
};

// What becomes of the classes that such a teacher does not name; the numbers of nanonet/reference_topk.py.
enum Tail : int64_t { kLeftOut, kBucket, kRenormalised, kTails };

// A teacher that is known by its k likeliest classes.
struct TopTeacher {
  int64_t k;
  const int64_t* ids;  // (N,k), each class once; -1: none
  const void* log_p;   // (N,k) real
  int64_t tail;
};

// The loss of N rows of C classes and K students. "real" is double for a float64 student and float for the rest.
struct Problem {
  int64_t K, N, C;
  double temperature;
  int64_t divergence;
  double beta;               // weight of the mixtures of some divergences
  const Rows* student;       // (K): each (N,C), wherever it lies
  const Rows* teacher;       // null: no teacher
  const int64_t* label;      // (N), null: no labels
  const void* row_weight;    // (K,N) real, null: ones. A weight of 0 masks the soft terms of the row
  const void* upstream;      // (3,K,N) real: gradient of each term, null: no gradient is wanted
  void* terms;               // (3,K,N) real
  void* stats;               // (K+1,N,4) real: written by terms (unless null), read by backward
  char* dstudent;            // (K,N,C) in the student's dtype, contiguous
  bool stream;               // write dstudent past the caches
  const TopTeacher* top;     // in the teacher's place, null: none
};

// The kernels of one instruction set. Each works on the rows [begin, end), and a row's result depends on that row
// alone, so that any split over threads gives the same bits.
struct Kernels {
  const char* name;
  int64_t (*scratch_bytes)(const Problem&);
  void (*terms)(const Problem&, int64_t begin, int64_t end, void* scratch);     // terms, stats
  void (*backward)(const Problem&, int64_t begin, int64_t end, void* scratch);  // dstudent from stats and upstream
  void (*loss)(const Problem&, int64_t begin, int64_t end, void* scratch);      // terms, dstudent
  void (*scale)(void* data, Dtype dtype, double factor, int64_t begin, int64_t end);
};

}  // namespace nanonet
