// What the compiler takes from newer libraries than those of manylinux_2_28 (glibc 2.28, libstdc++ 3.4.24), defined here
// instead, so that the wheel needs nothing newer. exp and log are bound to their old names in glibc.h.
#include <new>
#include <sstream>

#if defined(__GLIBCXX__)
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;  // glibc 2.32: counts of references are always atomic

namespace std {
void __throw_bad_array_new_length() { throw bad_array_new_length(); }  // 3.4.29
// 3.4.26 and 3.4.29: torch's headers write messages with them
template class basic_stringbuf<char>;
template class basic_ostringstream<char>;
template class basic_stringstream<char>;
}  // namespace std
#endif
