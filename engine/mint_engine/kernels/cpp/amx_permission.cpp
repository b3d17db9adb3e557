// Whether this process may use the instructions that the kernels are compiled for.
#include "amx.h"
#ifdef MINT_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

// 1, or 0 if the system refuses the AMX registers. Linux grants them to a process that asks (arch_prctl of
// ARCH_REQ_XCOMP_PERM, since 5.16), and to its forks.
extern "C" int mint_permitted() {
#ifdef MINT_AMX
  constexpr long ASK = 0x1023, TILES = 18;
  return syscall(SYS_arch_prctl, ASK, TILES) == 0;
#else
  return 1;
#endif
}
