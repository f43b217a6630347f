#include "simd_portable.h"

#include "ops_inl.h"

TIDEGATE_OPS(portable)
