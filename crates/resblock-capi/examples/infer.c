/* Loads the network that digits.c saved, and says what the images on standard input show:
 *
 *     gunzip -c examples/data/digits.csv.gz | ./infer net.safetensors
 */
#include "common.h"

enum { PIXELS = 64, CLASSES = 10, WIDTH = 64, HIDDEN = 128, BLOCKS = 3 };
#define FORMULAS (BLOCKS + 2)

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: infer net.safetensors < digits.csv\n");
    return 2;
  }
  resblock_formula formulas[FORMULAS];
  resblock_form block;
  must(resblock_form_named("vit", WIDTH, HIDDEN, &block), "form");
  formulas[0] = resblock_formula_linear(PIXELS, WIDTH, RESBLOCK_IDENTITY);
  for (size_t i = 1; i <= BLOCKS; i++) formulas[i] = resblock_formula_block(block);
  formulas[FORMULAS - 1] = resblock_formula_linear(WIDTH, CLASSES, RESBLOCK_IDENTITY);

  resblock_layer *net;
  must(resblock_layer_load(argv[1], formulas, FORMULAS, &net), argv[1]);
  resblock_context *context;
  must(resblock_context_new(&context), "context");
  must(resblock_context_set_threads(context, 0), "threads");
  resblock_workspace *workspace = resblock_workspace_new();

  char line[512];
  size_t rows = 0, right = 0;
  while (fgets(line, sizeof line, stdin)) {
    float pixels[PIXELS], logits[CLASSES];
    char *at = line;
    for (size_t i = 0; i < PIXELS; i++, at++) pixels[i] = (float)strtol(at, &at, 10) / 16.0f;
    must(resblock_layer_infer(net, context, workspace, rows_of(pixels, 1, PIXELS), rows_of_mut(logits, 1, CLASSES)), "infer");
    size_t best = 0;
    for (size_t j = 1; j < CLASSES; j++) best = logits[j] > logits[best] ? j : best;
    right += best == (size_t)strtol(at, &at, 10);
    rows++;
  }
  printf("%zu of %zu images\n", right, rows);
  resblock_workspace_free(workspace), resblock_context_free(context), resblock_layer_free(net);
  return rows > 0 && right * 10 > rows * 9 ? 0 : 1;
}
