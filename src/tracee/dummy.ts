// The dummy: a process of the engine's own that sleeps, on which a dump is practised before it is done (engine/rehearse.ts). It is
// started before the engine's code is loaded, and sleeps by the time that it is needed.

import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import { SIGKILL } from "../sys/abi/signal.ts";
import { spawnProgram } from "../sys/ffi.ts";
import { sendSignal, waitFor } from "../sys/process.ts";

/** It is left with nothing that the engine has open below 10; what Node opens is close-on-exec. It outlives an engine that is killed by two seconds at most. */
const SCRIPT = "exec 0<&- 1>&- 2>&- 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; exec sleep 2 </dev/null";

let dummy: number | undefined;

/** Starts the dummy. Where no process may be made, or there is no shell, there will be none. */
export function startDummy(): void {
  try {
    dummy ??= spawnProgram("/bin/sh", ["sh", "-c", SCRIPT]);
  } catch (error) {
    if (!(error instanceof RepriseError)) throw error;
    log.debug(`nothing is rehearsed: ${error.message}`);
  }
}

/** Its pid, if it was started. */
export function dummyPid(): number | undefined {
  return dummy;
}

/** Ends the dummy. */
export function endDummy(): void {
  if (dummy === undefined) return;
  sendSignal(dummy, SIGKILL);
  waitFor(dummy);
  dummy = undefined;
}
