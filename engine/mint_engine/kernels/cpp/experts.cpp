// The products of routed experts as a kernel of its own.
#include "experts.h"

#include <omp.h>

// x [P, in], of which rows bounds[e] to bounds[e + 1] are expert e's -> y [P, out].
#define MINT_EXPERTS(NAME, T)                                                                                          \
  extern "C" void mint_multiply_experts_##NAME(const T* x, const int64_t* bounds, int64_t experts,                     \
                                               const Stack<T>* by, T* y) {                                             \
    _Pragma("omp parallel")                                                                                            \
    multiply_part<T>(x, bounds, experts, *by, y, omp_get_thread_num(), omp_get_num_threads());                         \
  }
MINT_EXPERTS(bfloat16, bf16)
MINT_EXPERTS(float32, float)
