// Telling, before there is any task, what of a set does not fit this machine: a restore is tried all the same. Nothing is looked at of a
// set that this very boot has made, nor of one that tells nothing of its machine.

import type { LoadedSet } from "../images/check-set.ts";
import { log } from "../log.ts";
import type { CpuCapabilities } from "../objects/cpu/cpu-info.ts";
import { readBootId } from "../proc/self.ts";

/** Warns of a kernel or processor that lacks what the tasks may use; what else does not fit is an error of the plan. */
export async function warnOfMisfits(
  { inventory: { machine }, reader }: LoadedSet,
  processor: CpuCapabilities | undefined,
): Promise<void> {
  const tells = machine === undefined ? reader.has("cpuinfo") : machine.boot !== readBootId();
  if (!tells) return;
  const { fitsOfSet, misfitText } = await import("./machine.ts");
  for (const fit of fitsOfSet(reader, processor)) {
    const text = misfitText(fit);
    const isWarned = fit.what === "kernel" || fit.what === "processor";
    if (text !== undefined && isWarned) log.warn(text);
  }
}
