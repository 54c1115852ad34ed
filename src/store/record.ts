// The small JSON files of the store.

import { readFileSync } from "node:fs";
import { dirname } from "node:path";
import { RepriseError } from "../errors.ts";

/** @throws RepriseError BAD_IMAGE when it is not what was written, as after a full disk or a power cut */
export function readRecord(path: string): unknown {
  const text = readFileSync(path, "utf8");
  try {
    return JSON.parse(text) as unknown;
  } catch (cause) {
    throw new RepriseError("BAD_IMAGE", `cannot read ${path}: it is damaged`, {
      hint: `Put it back from a copy, or remove ${dirname(path)}.`,
      cause,
    });
  }
}
