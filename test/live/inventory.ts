// Sets that another machine seems to have made.

import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { entryBytes, headBytes, ImageFile, readEntries } from "../../src/images/image-file.ts";
import type { RepriseMachine } from "../../src/images/schema/messages.generated.ts";

/** Changes what a set tells of its machine. Its manifest, which would tell of that, is removed. */
export function changeMachine(
  images: string,
  change: (machine: RepriseMachine) => Partial<RepriseMachine>,
): void {
  const path = join(images, "inventory.img");
  const file = new ImageFile(path, "inventory.img");
  const [entry] = readEntries(file, "inventory");
  file[Symbol.dispose]();
  if (entry?.value.machine === undefined) throw new Error(`${path} tells of no machine`);
  const machine = { ...entry.value.machine, ...change(entry.value.machine) };
  const changed = entryBytes("inventory_entry", { ...entry.value, machine });
  writeFileSync(path, Buffer.concat([headBytes("inventory"), changed]));
  rmSync(join(images, "reprise-manifest.json"));
}
