// The rows of one instruction set and one real type: compiled with NANONET_ISA, NANONET_VECTOR_BYTES and NANONET_REAL,
// which is float or double, defined. Most of the time that the package takes to build is spent here.
#include "ranges.h"

#include "glibc.h"
#include "topk.h"

namespace nanonet::NANONET_ISA {

template <class F>
void run_range(const Problem& p, Pass pass, int64_t begin, int64_t end, char* scratch) {
  p.top ? TopRange<F>(p, scratch).run(pass, begin, end) : Range<F>(p, scratch).run(pass, begin, end);
}

template <class F>
int64_t range_bytes(const Problem& p) {
  return p.top ? TopRange<F>::bytes(p) : Range<F>::bytes(p);
}

template void run_range<NANONET_REAL>(const Problem&, Pass, int64_t, int64_t, char*);
template int64_t range_bytes<NANONET_REAL>(const Problem&);

}  // namespace nanonet::NANONET_ISA
