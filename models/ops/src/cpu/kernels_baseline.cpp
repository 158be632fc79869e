// For every processor that the compiler targets by default.
#define ISA baseline
#define WIDTH 4
#include "kernels.h"
