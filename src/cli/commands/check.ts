// reprise check: what this kernel can do.

import { probeAll, type Category } from "../../kernel/features.ts";
import { table } from "../text.ts";

/** Returns the exit code: 0 when everything that is needed always is there. */
export function check(): number {
  const categories: readonly Category[] = ["basic", "extra", "experimental"];
  const rows = categories.flatMap((category) =>
    probeAll([category]).map(({ name, supported, reason }) => [
      name,
      supported ? "yes" : "no",
      category === "basic" ? "always" : category === "extra" ? "for some programs" : "for later",
      reason,
    ]),
  );
  process.stdout.write(table(["FEATURE", "HERE", "NEEDED", "REASON"], rows));
  const good = probeAll(["basic"]).every((result) => result.supported);
  process.stdout.write(good ? "\nCheckpoints work here.\n" : "\nCheckpoints do not work here.\n");
  return good ? 0 : 1;
}
