// The error of all checks on a set as a whole.
import { RepriseError } from "../errors.ts";

/** An image set whose parts do not fit together. */
export function badSet(what: string): RepriseError {
  return new RepriseError("BAD_IMAGE", `cannot use image set: ${what}`, {
    hint: "The set is damaged, or its files are from different dumps. Copy it again from where it was made.",
  });
}
