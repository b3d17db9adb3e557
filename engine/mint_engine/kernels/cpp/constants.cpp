// What Python code shares with the kernels: limits, numbers of kinds, and the sizes of structs. They are only read when
// the library is loaded, by mint_engine.kernels.layout, which refuses a library that disagrees.
#include "activation.h"
#include "adapter_run.h"
#include "arrival.h"
#include "codes.h"
#include "peers.h"
#include "product.h"
#include "routed_experts.h"
#include "step.h"

#define MINT_CONSTANT(NAME, VALUE)      \
  extern "C" const int64_t mint_##NAME; \
  extern "C" const int64_t mint_##NAME = VALUE;
#define MINT_SIZE(NAME) MINT_CONSTANT(sizeof_##NAME, sizeof(NAME))
#define MINT_SIZE_OF(NAME) MINT_CONSTANT(sizeof_##NAME, sizeof(NAME<bf16>))  // the same for all number types

MINT_CONSTANT(item_rows, ITEM_ROWS)
MINT_CONSTANT(max_rank, MAX_RANK)
MINT_CONSTANT(max_query_rows, MAX_QUERY_ROWS)
MINT_CONSTANT(max_experts, MAX_EXPERTS)
MINT_CONSTANT(panel_width, WIDTH)
MINT_CONSTANT(page_tokens, PAGE)
MINT_CONSTANT(lost, LOST)
MINT_CONSTANT(e4m3, E4M3)
MINT_CONSTANT(int8, INT8)
MINT_CONSTANT(e2m1, E2M1)
MINT_CONSTANT(int4, INT4)
MINT_CONSTANT(scale_float, SCALE_FLOAT)
MINT_CONSTANT(scale_bfloat16, SCALE_BFLOAT16)
MINT_CONSTANT(scale_float16, SCALE_FLOAT16)
MINT_CONSTANT(scale_power, SCALE_POWER)
MINT_CONSTANT(scale_e4m3, SCALE_E4M3)
MINT_CONSTANT(zero_none, NO_ZEROS)
MINT_CONSTANT(zero_bytes, ZERO_BYTES)
MINT_CONSTANT(zero_codes, ZERO_CODES)
MINT_CONSTANT(activation_silu, Activation::SILU)
MINT_CONSTANT(activation_gelu_pytorch_tanh, Activation::GELU)
MINT_CONSTANT(activation_clamped, Activation::CLAMPED)
MINT_SIZE(SharedBarriers)
MINT_SIZE(AttentionVariant)
MINT_SIZE(Activation)
MINT_SIZE(Arrival)
MINT_SIZE(Codes)
MINT_SIZE(GroupedRouter)
MINT_SIZE_OF(AdapterRun)
MINT_SIZE_OF(Base)
MINT_SIZE_OF(Experts)
MINT_SIZE_OF(Heads)
MINT_SIZE_OF(Indexer)
MINT_SIZE_OF(Latent)
MINT_SIZE_OF(Layer)
MINT_SIZE_OF(Linear)
MINT_SIZE_OF(Norm)
MINT_SIZE_OF(Peers)
MINT_SIZE_OF(Slots)
MINT_SIZE_OF(Stack)
MINT_SIZE_OF(Step)
MINT_SIZE_OF(Workspace)
