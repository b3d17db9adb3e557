// The arguments of a step, filled in by `mint_engine.kernels.structs`.
#pragma once
#include "arrival.h"
#include "attend.h"
#include "experts.h"
#include "activation.h"
#include "lora.h"
#include "peers.h"
#include "product.h"
#include "rows.h"

// DeepSeek-V3's routing (arXiv 2412.19437, 2.1.2), in float32: an expert's probability is its own sigmoid, or, if
// `softmax`, its part of a softmax. Probability plus `bias` ranks groups, and then experts in the best groups; a
// chosen expert's weight is its probability times `factor`.
struct GroupedRouter {
  Linear<float> router;
  int64_t softmax;
  const float* bias;           // [E]
  int64_t groups, top_groups;  // number of groups of adjacent experts; how many of them are searched
  float factor;
};

// What some layers have instead of one network: a router, and networks of which it assigns `top_k` to every row. Each
// of several ranks holds `held` experts from `first` on.
template <typename T>
struct Experts {
  Linear<T> router;              // the experts' probabilities are a softmax over its outputs
  const GroupedRouter* grouped;  // null: `router` routes
  int64_t count, top_k, first, held;
  int64_t normalised, rounded;  // whether a row's weights add up to one; whether they are rounded like what they weigh
  Stack<T> gate_up, down;
  const T *gate_up_bias, *down_bias;  // [held, 2 inner], [held, hidden]; null: none
  int64_t interleaved;                // whether gates and what they gate are interleaved, in weight and bias
};

// Scores a row's past, see indexer.h. The last [D + J] of the layer's first product are its key and its heads' weights.
template <typename T>
struct Indexer {
  Linear<T> queries;     // [J D] from the output of the layer's `query_norm`
  const T *norm, *bias;  // [D], of the key's LayerNorm
  int64_t heads, size;   // J, D
  int64_t pairs;         // whether interleaved neighbours are rotated together, not halves
  float epsilon;
  int64_t projected_width() const { return size + heads; }
};

// Latent attention, see latent.h. A layer's first product gives each head's query, or the input of `queries`, followed
// by [C + E].
template <typename T>
struct Latent {
  Linear<T> queries;  // from the output of `query_norm`, which is null if the first product gives the queries
  const T *query_norm, *norm;
  const Linear<T>*keys, *values;                // of each head: [C, K] and [V, C]
  int64_t heads, nope, rotated, latent, value;  // Q, K, E, C, V
  int64_t row;                                  // numbers of a token's row in the cache
  const float *cos, *sin;                       // [positions, E / 2]
  int64_t pairs;                                // whether interleaved neighbours are rotated together, not halves
  int64_t module;                               // that of `kv_b_proj`; -1: no adapter may target it
  float epsilon;
  int64_t top_k;              // tokens that a row attends to at most; 0: all
  const Indexer<T>* indexer;  // finds these tokens; null: all, or those of an earlier layer
  int64_t width() const { return latent + rotated; }
  // How many of `tokens` tokens from `position` on attend to everything before them; these come first.
  int64_t dense(int64_t position, int64_t tokens) const {
    return top_k ? std::clamp<int64_t>(top_k - position, 0, std::max<int64_t>(tokens, 0)) : tokens;
  }
};

template <typename T>
struct Layer {
  Norm<T> attention_norm;
  Linear<T> qkv, output;
  Norm<T> post_attention_norm;  // of attention's output; this norm and the ones below may be none
  Norm<T> mlp_norm;
  Linear<T> gate_up, down;    // of all rows; may be none if there are experts
  const Experts<T>* experts;  // null: none
  Norm<T> post_mlp_norm;      // of the network's output
  Heads<T> heads;
  const Latent<T>* latent;  // in place of heads; null: none
  T* pool;                  // this layer's pages
  int64_t group;            // the group of layers whose places and chunks it uses
};

template <typename T>
struct Base {
  const T* embedding;  // [vocabulary, hidden]
  const Layer<T>* layers;
  int64_t layer_count;
  Norm<T> norm;
  Linear<T> head;
  float scale, epsilon;
  Activation activation;
  float embedding_scale, residual_scale;  // factors of the embeddings, and of what layers add
  float logit_divisor, logit_cap;         // what logits are divided by, and capped at; 0: off
};

template <typename T>
struct Step {
  int64_t rows;
  const int64_t *tokens, *positions;  // [rows]
  const int64_t* places;              // [groups, rows]: places in the cache, for each group of layers
  const Chunk* chunks;                // [groups, chunk_count]; groups differ in where their tables begin
  int64_t chunk_count;
  const int32_t* tables;
  const Item* items;
  int64_t item_count;
  const int64_t* logit_rows;  // [logit_row_count]: rows whose logits are wanted
  int64_t logit_row_count;
  T* logits;  // [logit_row_count, logits_width]: this rank's columns of rows over the vocabulary
  int64_t logits_width;
  int32_t* routes;         // [layers with experts, rows, top_k]: the experts of each row
  float* weights;          // [rows, top_k]
  const Arrival* arrival;  // null: everything that the step reads of its slots is in memory
};

// Buffers for a step's rows: hidden, x and delta [rows, hidden], the others as wide as stated below, sums as wide as
// `wide`. And for row-expert pairs: pair_hidden [pairs, hidden], pair_gate_up [pairs, 2 inner], pair_gated [pairs,
// inner].
template <typename T>
struct Workspace {
  T *hidden, *x, *delta, *wide, *narrow;
  float* sums;        // what adapters add until the base's part is computed; or a router's rows and logits
  Middle<T>* middle;  // see lora.h
  T *pair_hidden, *pair_gate_up, *pair_gated;
  T* latents;         // [rows, Q (C + E)] for latent attention; before that, an indexer's queries
  int32_t* selected;  // [rows, top_k]: ascending positions that a row attends to, unless it attends to all
  int64_t wide_width, narrow_width, middle_width, latents_width;
};
