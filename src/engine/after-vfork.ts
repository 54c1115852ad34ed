// A tree in which a thread waits for its vfork child is let go, but for that thread: it comes to its stop as soon as the vfork is over,
// before it can begin another one, and then the others are stopped.

import { PTRACE_O_TRACESYSGOOD } from "../sys/abi/ptrace.ts";
import { Tracee, type TraceCounters } from "../tracee/tracee.ts";
import { detachLater } from "./let-go.ts";
import { VforkWait } from "./vfork-wait.ts";

/** How long it is tried altogether. */
const TRY_FOR_MS = 500;

/** A thread that was stopped when its vfork was over. */
export interface EarlyStop {
  readonly tracee: Tracee;
  /** Of a group stop, or 0. */
  readonly stopSignal: number;
}

/**
 * Tries to stop a tree until no vfork is in the way any more or it has been tried long enough.
 *
 * @param freeze takes over the thread that it is given; it lets all go when it throws, but for the one of a VforkWait
 */
export function retryAfterVfork<T>(
  counters: TraceCounters,
  freeze: (early: EarlyStop | undefined) => T,
): T {
  const end = performance.now() + TRY_FOR_MS;
  let early: EarlyStop | undefined;
  for (;;) {
    try {
      return freeze(early);
    } catch (error) {
      if (!(error instanceof VforkWait)) throw error;
      early = stopAfterVfork(error, { counters, end });
    }
  }
}

/** Undefined when the thread has ended meanwhile. @throws VforkWait when it does not come back in time */
function stopAfterVfork(
  wait: VforkWait,
  { counters, end }: { readonly counters: TraceCounters; readonly end: number },
): EarlyStop | undefined {
  const tracee = wait.tracee ?? new Tracee(wait.tid, wait.pid, counters);
  if (wait.tracee === undefined && !tracee.seize(PTRACE_O_TRACESYSGOOD)) return undefined;
  tracee.interrupt();
  try {
    const stopSignal = tracee.waitInterrupted(() => {
      if (performance.now() > end) throw wait;
    });
    return stopSignal === undefined ? undefined : { tracee, stopSignal };
  } catch (error) {
    detachLater(tracee);
    throw error;
  }
}
