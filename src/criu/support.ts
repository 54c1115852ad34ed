// What of CRIU's options the engine honours. An option that would change the result and is not honoured is
// refused; one that only permits what is so anyway, or what the engine then refuses by itself, naming the object,
// is let through.

import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import type { CriuOptions, OptionName } from "./options.ts";

/** Options that would change what is saved or made, and are not honoured yet. */
const REFUSED: readonly OptionName[] = ["stream"];

/** Options that ask for what is so anyway: another way to the same result, or leave for what is not needed here. */
const NOT_NEEDED: readonly OptionName[] = [
  "evasive-devices",
  "force-irmap",
  "mntns-compat-mode",
  "allow-uprobes",
  "unprivileged",
  "libdir",
];

/** @throws RepriseError UNSUPPORTED when an option is given that the engine cannot honour. */
export function checkSupport(options: CriuOptions): void {
  const refused = REFUSED.find((name) => isGiven(options, name));
  if (refused !== undefined) {
    throw new RepriseError("UNSUPPORTED", `option --${refused} is not supported yet`, {
      hint: "Leave it out, or use CRIU for this checkpoint.",
    });
  }
  for (const name of NOT_NEEDED) {
    if (isGiven(options, name)) log.debug(`option --${name} changes nothing here`);
  }
}

function isGiven(options: CriuOptions, name: OptionName): boolean {
  const { flags, values, lists } = options;
  return (flags as ReadonlySet<string>).has(name) || name in values || name in lists;
}
