// reprise check NAME: whether a checkpoint fits this machine, before a restore is tried.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { chooseCheckpoint, engineOf, parseReference } from "../../containers/container-engine.ts";
import { fitsOf } from "../../engine/machine.ts";
import { RepriseError } from "../../errors.ts";
import { imageName } from "../../images/names.ts";
import { findCheckpoint } from "../../store/checkpoints.ts";
import { readTask } from "../../store/tasks.ts";
import { checkpointNumber, table } from "../text.ts";

/** Returns the exit code: 0 when all fits. @throws RepriseError NO_SUCH_NAME, IMAGE_MISSING, BAD_IMAGE */
export async function checkSet(what: string, options: { checkpoint?: string }): Promise<number> {
  const imagesDir = await imagesOf(what, options);
  const fits = fitsOf(imagesDir);
  const rows = fits.map(({ what: side, saved, fault }) => [
    fault === undefined ? "ok" : "NO",
    side,
    saved ?? "not told",
    fault ?? "",
  ]);
  process.stdout.write(`${imagesDir}\n`);
  process.stdout.write(table(["HERE", "WHAT", "SAVED ON", "WHY NOT, WHAT TO DO"], rows));
  const good = fits.every(({ fault }) => fault === undefined);
  process.stdout.write(good ? "\nIt fits this machine.\n" : "\nIt may not come back here.\n");
  return good ? 0 : 1;
}

async function imagesOf(what: string, options: { checkpoint?: string }): Promise<string> {
  if (existsSync(join(what, imageName("inventory")))) return what;
  if (what.includes("/")) {
    throw new RepriseError("IMAGE_MISSING", `${what} has no images: no inventory.img`, {
      hint: "The inventory is written last; a dump that failed has none.",
    });
  }
  const reference = parseReference(what);
  if (reference === undefined) {
    const number = checkpointNumber(options.checkpoint);
    readTask(what);
    return findCheckpoint(what, number).imagesDir;
  }
  const engine = await engineOf(reference);
  const chosen = await chooseCheckpoint(engine, reference.container, options.checkpoint);
  const imagesDir = await engine.images(reference.container, chosen);
  if (imagesDir !== undefined) return imagesDir;
  throw new RepriseError("UNSUPPORTED", `cannot look into checkpoint ${chosen}: it is an archive`, {
    hint: "Unpack it, and check the directory `checkpoint` in it: reprise check DIRECTORY",
  });
}
