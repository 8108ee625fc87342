// HyenaRec's operators for C++: include this, link HyenaRec::ops.
#pragma once

#include "ops/dropout_add_layer_norm/dropout_add_layer_norm.h"
#include "ops/fft_conv/fft_conv.h"
#include "ops/hyena_mixer/hyena_mixer.h"
#include "ops/legendre_conv/legendre_conv.h"
#include "ops/legendre_kernel/legendre_kernel.h"
#include "ops/legendre_step/legendre_step.h"
#include "ops/linear_cross_entropy/linear_cross_entropy.h"
#include "ops/short_conv/short_conv.h"
