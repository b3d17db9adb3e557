"""One engine over several ranks: each a process with a share of the base's layers and of every adapter.

Steps and slot changes travel on two connections, and two threads of each rank carry them out. So that no slot
changes under a step, and no step reads a slot that is about to change, they keep this order:

      rank 0: steps     rank 0: slots                        rank 1: steps     rank 1: slots
           |                 |                                    |                 |
           |--- Step -------------------------------------------->|                 |
    own share                |                            own share                 |
           |<~~ sums, logits of kept rows ~~~~~~~~~~~~~~~~~~~~~~~>|                 |
    n steps launched         |                                    |                 |
           |- slot unused -->|                                    |                 |
           |                 |--- Load or Clear, after n -------------------------->|
           |              own row                                 |              waits
           |                 |                             n steps launched ------->|
           |                 |                                    |     own row, once its GPU has
           |                 |                                    |     computed what was launched
           |                 |<-- Ready or Refused ---------------------------------|
           |<- slot usable --|                                    |                 |
           |--- Step -------------------------------------------->|                 |

- A slot changes only while no request has it: every step that reads it has returned on rank 0. On another rank that
  step may not even have begun, if nothing made rank 0 wait for its end. So each change carries the number of steps
  that rank 0 has launched, and each rank waits until it has launched as many. It does not wait for later steps.
- A request gets a slot only once every rank has changed it.
- Waits end: a rank that does not launch its steps refuses the change after `rank.LAUNCH_S`, and a rank whose
  connections have been closed ends with all of its threads.
"""
