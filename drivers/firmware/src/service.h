/* Answers requests, whatever line and board they come by. */
#ifndef AI_SERVICE_H
#define AI_SERVICE_H

#include <stdint.h>

void service_start(void); /* says hello, and what went wrong before the boot */
void service_byte(uint8_t byte);

#endif
