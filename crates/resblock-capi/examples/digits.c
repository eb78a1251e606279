/* Trains a residual network on the digits (8 x 8 pixels, ten classes) and saves it:
 *
 *     gunzip -c examples/data/digits.csv.gz | ./digits net.safetensors
 */
#include "common.h"

#include <string.h>

enum { PIXELS = 64, CLASSES = 10, MOST_ROWS = 1797, HELD_OUT = 360, BATCH = 64, WIDTH = 64, HIDDEN = 128, BLOCKS = 3, EPOCHS = 12 };
#define FORMULAS (BLOCKS + 2)

/* Rows of the CSV on standard input: 64 pixels of 0 to 16, and a label. */
static size_t read_digits(float *pixels, size_t *labels) {
  char line[512];
  size_t rows = 0;
  while (rows < MOST_ROWS && fgets(line, sizeof line, stdin)) {
    char *at = line;
    for (size_t i = 0; i < PIXELS; i++) {
      pixels[rows * PIXELS + i] = (float)strtol(at, &at, 10) / 16.0f;
      if (*at != ',') {
        fprintf(stderr, "row %zu: expected %d fields\n", rows + 1, PIXELS + 1);
        exit(1);
      }
      at++;
    }
    labels[rows] = (size_t)strtol(at, &at, 10);
    rows++;
  }
  return rows;
}

/* A generator for the order of the rows: xorshift64*, Vigna 2016. */
static unsigned long long state = 1797;
static size_t below(size_t n) {
  state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
  return (size_t)((state * 2685821657736338717ull >> 33) % n);
}

static void shuffle(float *pixels, size_t *labels, size_t rows) {
  float row[PIXELS];
  for (size_t i = rows - 1; i > 0; i--) {
    size_t j = below(i + 1), label = labels[i];
    memcpy(row, pixels + i * PIXELS, sizeof row);
    memcpy(pixels + i * PIXELS, pixels + j * PIXELS, sizeof row);
    memcpy(pixels + j * PIXELS, row, sizeof row);
    labels[i] = labels[j], labels[j] = label;
  }
}

static double accuracy(const float *logits, const size_t *labels, size_t rows) {
  size_t right = 0;
  for (size_t i = 0; i < rows; i++) {
    size_t best = 0;
    for (size_t j = 1; j < CLASSES; j++) best = logits[i * CLASSES + j] > logits[i * CLASSES + best] ? j : best;
    right += best == labels[i];
  }
  return 100.0 * (double)right / (double)rows;
}

int main(int argc, char **argv) {
  float *pixels = floats(MOST_ROWS * PIXELS);
  size_t labels[MOST_ROWS];
  size_t rows = read_digits(pixels, labels);
  if (rows <= HELD_OUT + BATCH) {
    fprintf(stderr, "standard input has %zu rows\n", rows);
    return 1;
  }
  shuffle(pixels, labels, rows);
  size_t train = rows - HELD_OUT;

  /* 64 -> WIDTH, blocks of pre-LayerNorm and GELU, WIDTH -> 10: one function. */
  resblock_formula formulas[FORMULAS];
  resblock_form block;
  must(resblock_form_named("vit", WIDTH, HIDDEN, &block), "form");
  formulas[0] = resblock_formula_linear(PIXELS, WIDTH, RESBLOCK_IDENTITY);
  for (size_t i = 1; i <= BLOCKS; i++) formulas[i] = resblock_formula_block(block);
  formulas[FORMULAS - 1] = resblock_formula_linear(WIDTH, CLASSES, RESBLOCK_IDENTITY);
  resblock_function *net;
  must(resblock_function_new(formulas, FORMULAS, false, &net), "function");

  /* Parameters, gradients and moments are ours. */
  size_t count;
  must(resblock_function_sizes(net, NULL, NULL, &count), "sizes");
  float **values = (float **)calloc(count, sizeof *values);
  float **m = (float **)calloc(count, sizeof *m), **v = (float **)calloc(count, sizeof *v);
  size_t *lens = (size_t *)calloc(count, sizeof *lens);
  resblock_parameter *params = (resblock_parameter *)calloc(count, sizeof *params);
  resblock_gradient *grads = (resblock_gradient *)calloc(count, sizeof *grads);
  if (!values || !m || !v || !lens || !params || !grads) return 1;
  for (size_t i = 0; i < count; i++) {
    resblock_tensor tensor;
    must(resblock_function_tensor(net, i, &tensor), "tensor");
    lens[i] = tensor.rows * tensor.cols;
    params[i].data = values[i] = floats(lens[i]);
    grads[i].data = floats(lens[i]);
    m[i] = floats(lens[i]), v[i] = floats(lens[i]);
  }
  must(resblock_init(net, 1, values, count), "init");

  resblock_context *context;
  must(resblock_context_new(&context), "context");
  resblock_workspace *workspace = resblock_workspace_new();
  size_t record_len;
  must(resblock_record_len(net, BATCH, &record_len), "record_len");
  float *record = floats(record_len), *logits = floats(rows * CLASSES), *dlogits = floats(BATCH * CLASSES);

  unsigned long long step = 0;
  for (int epoch = 1; epoch <= EPOCHS; epoch++) {
    double sum = 0;
    shuffle(pixels, labels, train);
    for (size_t at = 0; at + BATCH <= train; at += BATCH) {
      resblock_const_matrix x = rows_of(pixels + at * PIXELS, BATCH, PIXELS);
      resblock_matrix y = rows_of_mut(logits, BATCH, CLASSES), dy = rows_of_mut(dlogits, BATCH, CLASSES);
      double loss;
      must(resblock_forward(net, context, workspace, params, count, x, y, record, record_len), "forward");
      must(resblock_softmax_cross_entropy(rows_of(logits, BATCH, CLASSES), labels + at, &dy, &loss), "loss");
      must(resblock_backward(net, context, workspace, params, count, record, record_len, rows_of(dlogits, BATCH, CLASSES), NULL,
                             grads, RESBLOCK_OVERWRITE),
           "backward");
      step++;
      for (size_t i = 0; i < count; i++)
        must(resblock_adamw_step(resblock_adamw_new(2e-3f), context, step, values[i], grads[i].data, m[i], v[i], lens[i]), "step");
      sum += loss;
    }
    resblock_const_matrix x = rows_of(pixels + train * PIXELS, HELD_OUT, PIXELS);
    must(resblock_infer(net, context, workspace, params, count, x, rows_of_mut(logits, HELD_OUT, CLASSES)), "infer");
    printf("epoch %2d: loss %.4f, held-out accuracy %.1f %%\n", epoch, sum / (double)(train / BATCH),
           accuracy(logits, labels + train, HELD_OUT));
  }
  double reached = accuracy(logits, labels + train, HELD_OUT);

  resblock_layer *layer;
  must(resblock_layer_pack(net, params, count, &layer), "pack");
  if (argc > 1) must(resblock_layer_save(layer, argv[1]), "save");

  resblock_layer_free(layer);
  for (size_t i = 0; i < count; i++) free(values[i]), free(grads[i].data), free(m[i]), free(v[i]);
  free(values), free(m), free(v), free(lens), free(params), free(grads);
  free(record), free(logits), free(dlogits), free(pixels);
  resblock_workspace_free(workspace), resblock_context_free(context), resblock_function_free(net);
  return reached > 90 ? 0 : 1;
}
