// `criu check`: asks the kernel for what dump and restore need, and says so in CRIU's words, which callers
// read.

import { RepriseError } from "../errors.ts";
import { isFeatureName, probeAll, probeFeature, type ProbeResult } from "../kernel/features.ts";
import { log } from "../log.ts";
import { readStatus } from "../proc/status.ts";
import { CAP_CHECKPOINT_RESTORE, CAP_SYS_ADMIN } from "../sys/abi/sched.ts";
import type { CriuOptions } from "./options.ts";
import { printOut } from "./output.ts";

/** With one of them a part of all that can be saved and restored is. */
const ENOUGH = (1n << BigInt(CAP_SYS_ADMIN)) | (1n << BigInt(CAP_CHECKPOINT_RESTORE));

/**
 * Runs the action. Returns the exit code: 1 also when only optional features that were asked for are missing.
 *
 * @throws RepriseError NOT_PERMITTED for a user whom the kernel would let do nothing of all this
 */
export function check(options: CriuOptions): number {
  if ((readStatus(process.pid).capEff & ENOUGH) === 0n) {
    throw new RepriseError(
      "NOT_PERMITTED",
      "this process has neither CAP_SYS_ADMIN nor CAP_CHECKPOINT_RESTORE",
      { hint: "Run it as root." },
    );
  }
  const feature = options.values.feature;
  if (feature !== undefined) return checkFeature(feature);
  const { flags } = options;
  if (!isGoodEnough()) {
    printOut("Does not look good.\n");
    return 1;
  }
  const extra = flags.has("all") || flags.has("extra") ? failures(probeAll(["extra"])) : [];
  const experimental =
    flags.has("all") || flags.has("experimental") ? failures(probeAll(["experimental"])) : [];
  if (extra.length + experimental.length > 0) {
    printOut(
      "Looks good but some kernel features are missing\n" +
        "which, depending on your process tree, may cause\n" +
        "dump or restore failure.\n",
    );
    return 1;
  }
  printOut("Looks good.\n");
  return 0;
}

/** Whether the kernel has what every dump and restore needs; what it lacks is logged. */
export function isGoodEnough(): boolean {
  return failures(probeAll(["basic"])).length === 0;
}

function checkFeature(name: string): number {
  if (!isFeatureName(name)) {
    throw new RepriseError("BAD_ARGUMENT", `Unknown feature ${name}`, {
      hint: "criu --help lists the names.",
    });
  }
  const result = probeFeature(name);
  if (!result.supported) {
    log.warn(`${name} is not supported: ${result.reason}`);
    return 1;
  }
  printOut(`${name} is supported\n`);
  return 0;
}

function failures(results: readonly ProbeResult[]): ProbeResult[] {
  const failed = results.filter((result) => !result.supported);
  for (const { name, reason } of failed) log.warn(`${name} is not supported: ${reason}`);
  return failed;
}
