#include "simd_avx2.h"

#include "ops_inl.h"

TIDEGATE_OPS(avx2)
