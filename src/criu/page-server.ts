// `criu page-server`: takes the pages of one dump, then ends. With --lazy-pages it serves pages of a set instead.

import { receivePages } from "../engine/page-server.ts";
import { log } from "../log.ts";
import { trySyscall } from "../sys/ffi.ts";
import { accept, isListening, listenTcp } from "../sys/stream.ts";
import { numberValue, type CriuOptions } from "./options.ts";
import { listenAddress, tellReady } from "./page-options.ts";
import type { Directories } from "./paths.ts";

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
  const connection = await connect(options, given);
  const { pages, inParent } = receivePages(connection, {
    imagesDir: directories.imagesDir,
    autoDedup: options.flags.has("auto-dedup"),
    waitForEnd: given === undefined,
  });
  trySyscall("close", connection);
  log.info(`received ${pages} pages, and ${inParent} are in the parent set`);
  return 0;
}

/** Waits for the one connection; a socket that was given may be it. */
async function connect(options: CriuOptions, given: number | undefined): Promise<number> {
  if (given !== undefined && !isListening(given)) {
    tellReady(options);
    return given;
  }
  const listener = given ?? listen(await listenAddress(options));
  tellReady(options);
  const connection = accept(listener);
  trySyscall("close", listener);
  return connection;
}

function listen(address: Parameters<typeof listenTcp>[0]): number {
  const { fd, port } = listenTcp(address);
  log.info(`listens at ${address.address} port ${port}`);
  return fd;
}
