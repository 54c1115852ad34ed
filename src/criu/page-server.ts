// `criu page-server`: takes the pages of one dump, then ends. With --lazy-pages it serves pages of a set instead.

import { receivePages } from "../engine/page-server.ts";
import { servePages, SetPages } from "../engine/page-source.ts";
import { log } from "../log.ts";
import { trySyscall } from "../sys/ffi.ts";
import { numberValue, type CriuOptions } from "./options.ts";
import { listenFor } from "./page-options.ts";
import type { Directories } from "./paths.ts";
import { readyScripts } from "./scripts.ts";

/** Runs the action. Returns the exit code. */
export async function pageServerAction(
  options: CriuOptions,
  directories: Directories,
): Promise<number> {
  if (options.flags.has("restore-detached")) {
    const { startDaemon } = await import("./daemon.ts");
    return startDaemon(options, directories);
  }
  const given = numberValue(options, "ps-socket", 0);
  const connection = (await listenFor(options, readyScripts(options, directories)))();
  if (options.flags.has("lazy-pages")) {
    using saved = new SetPages(directories.imagesDir);
    servePages(connection, saved.read, { waitForEnd: given === undefined });
    trySyscall("close", connection);
    return 0;
  }
  const { pages, inParent } = receivePages(connection, {
    imagesDir: directories.imagesDir,
    autoDedup: options.flags.has("auto-dedup"),
    waitForEnd: given === undefined,
  });
  trySyscall("close", connection);
  log.info(`received ${pages} pages, and ${inParent} are in the parent set`);
  return 0;
}
