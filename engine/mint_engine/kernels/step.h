// What a step is computed from, as `mint_engine.kernels.structs` fills it in.
#pragma once
#include "arrival.h"
#include "attend.h"
#include "experts.h"
#include "activation.h"
#include "lora.h"
#include "peers.h"
#include "product.h"
#include "rows.h"

// How DeepSeek-V3 routes (arXiv 2412.19437, 2.1.2), in float32: an expert's chance is a sigmoid by itself, or where they
// are `together` one of chances that add up to one. By chances and `bias` the best groups are found, and in these the
// best experts, whose weights are chances times `factor`.
struct Grouped {
  Linear<float> router;
  int64_t together;
  const float* bias;       // [E]
  int64_t groups, chosen;  // of experts that lie side by side; how many are looked into
  float factor;
};

// What some layers have in place of one network: a router and the networks of which it gives each row `each`. Of
// several ranks, each holds some of them, `first` and those that follow it.
template <typename T>
struct Experts {
  Linear<T> router;        // of experts whose chances add up to one
  const Grouped* grouped;  // null: that one
  int64_t count, each, first, held;
  int64_t whole, rounded;  // whether a row's weights add up to one; whether they are rounded as what they weigh
  Stack<T> gate_up, down;
  const T *gate_up_bias, *down_bias;  // [held, 2 inner], [held, hidden]; null: none
  int64_t turns;                      // whether gates and what they gate take turns, in the weight and the bias
};

// What scores a row's past, see indexer.h. Of a layer's first product it has the last [D + J]: key, and heads' weights.
template <typename T>
struct Indexer {
  Linear<T> queries;      // [J D] of what the layer's `query_norm` gives
  const T *norm, *bias;   // [D], of keys
  int64_t heads, size;    // J, D
  int64_t pairs;          // whether neighbours are turned together, not halves
  float epsilon;
  int64_t made() const { return size + heads; }
};

// Latent attention, see latent.h: a layer's first product makes each head's query, or what `queries` makes them of, and
// behind that [C + E].
template <typename T>
struct Latent {
  Linear<T> queries;      // of what `query_norm` gives; `query_norm` is null where there is nothing between
  const T *query_norm, *norm;
  const Linear<T>*keys, *values;  // of each head: [C, K] and [V, C]
  int64_t heads, plain, rotated, latent, value;  // Q, K, E, C, V
  int64_t row;                                   // numbers of a token in the cache
  const float *cos, *sin;                        // [positions, E / 2]
  int64_t pairs;   // whether neighbours are turned together, not halves
  int64_t module;  // `kv_b_proj`; -1: no adapter may target it
  float epsilon;
  int64_t most;               // tokens that a row attends to; 0: all
  const Indexer<T>* indexer;  // that finds them; null: all, or those of a layer before
  int64_t width() const { return latent + rotated; }
  // Of so many tokens from `position` on, the first, that attend to all before them.
  int64_t dense(int64_t position, int64_t tokens) const {
    return most ? std::clamp<int64_t>(most - position, 0, std::max<int64_t>(tokens, 0)) : tokens;
  }
};

template <typename T>
struct Layer {
  Norm<T> attention_norm;
  Linear<T> qkv, output;
  Norm<T> attended_norm;  // of what attention gives; here and below there may be none
  Norm<T> mlp_norm;
  Linear<T> gate_up, down;    // all rows'; beside experts there may be none
  const Experts<T>* experts;  // null: none
  Norm<T> given_norm;         // of what the network gives
  Heads<T> heads;
  const Latent<T>* latent;  // in place of heads; null: none
  T* pool;                  // this layer's pages
  int64_t group;            // of layers whose pages these are
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
  float enlarged, added;  // what embeddings are multiplied by, and what layers add
  float divided, cap;     // what logits are divided by, and held within; 0: not
};

template <typename T>
struct Step {
  int64_t rows;
  const int64_t *tokens, *positions;  // [rows]
  const int64_t* places;              // [groups, rows]: of each group of layers
  const Stretch* stretches;           // [groups, stretch_count], which differ in where their tables begin
  int64_t stretch_count;
  const int32_t* tables;
  const Item* items;
  int64_t item_count;
  const int64_t* keep;  // [kept]: rows whose logits are wanted
  int64_t kept;
  T* logits;            // [kept, logits_width]: this rank's columns, of all of the vocabulary
  int64_t logits_width;
  int32_t* routes;  // [layers with experts, rows, each]: where rows go
  float* weights;   // [rows, each]
  const Arrival* arrival;  // null: all that the step reads of its slots is there
};

// Room for a step's rows: hidden, x and delta [rows, hidden], the others as wide as said; sums as wide as `wide`. And
// for their pairs with experts: paired [pairs, hidden], paired_wide [pairs, 2 inner], paired_narrow [pairs, inner].
template <typename T>
struct Room {
  T *hidden, *x, *delta, *wide, *narrow;
  float* sums;        // what adapters add, until the base's part is there; a router's rows and their logits
  Middle<T>* middle;  // see lora.h
  T *paired, *paired_wide, *paired_narrow;
  T* latents;       // [rows, Q (C + E)] where attention is latent; an indexer's queries before
  int32_t* chosen;  // [rows, most]: positions that a row attends to, in their order, where it does not to all
  int64_t wide_width, narrow_width, middle_width, latents_width;
};
