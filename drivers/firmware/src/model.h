/* The model. The build generates model_config.h and model_identity from what it compiled. */
#ifndef AI_MODEL_H
#define AI_MODEL_H

#include <stdint.h>

#include "bknn_model.h"
#include "model_config.h"
#include "protocol.h"

#define AI_INPUT_BYTES BKNN_MODEL_INPUT_BYTES
#define AI_OUTPUT_BYTES BKNN_MODEL_OUTPUT_BYTES

/* The largest body: that of an INFER with all samples, or of the longest PING. */
#define AI_SAMPLES_BYTES (AI_INFER_HEADER_BYTES + AI_MAX_SAMPLES * AI_INPUT_BYTES)
#define AI_PAYLOAD_BYTES (AI_SAMPLES_BYTES > AI_PING_BYTES ? AI_SAMPLES_BYTES : AI_PING_BYTES)
#define AI_REQUEST_BYTES (AI_HEADER_BYTES + AI_PAYLOAD_BYTES + AI_CRC_BYTES)

/* HELLO_REPLY from the board's name on. */
extern const uint8_t model_identity[AI_IDENTITY_BYTES];

void model_run(const uint8_t *input, uint8_t *output);

#endif
