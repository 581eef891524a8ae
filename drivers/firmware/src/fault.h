#ifndef AI_FAULT_H
#define AI_FAULT_H

void hard_fault_handler(void);

#endif
