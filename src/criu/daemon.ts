// Servers in the background (--daemon): this process starts itself again, detached, waits until that one is ready, and ends.

import { spawn } from "node:child_process";
import { once } from "node:events";
import type { Readable } from "node:stream";
import { RepriseError } from "../errors.ts";
import { tellReady, writeServerPid } from "./page-options.ts";
import type { CriuOptions } from "./options.ts";
import type { Directories } from "./paths.ts";

/** Number of the pipe's end in the server. */
const READY_FD = 3;

/**
 * Starts this very command line in the background, without its --daemon.
 *
 * @throws RepriseError when the server ends before it is ready.
 */
export async function startDaemon(
  options: CriuOptions,
  { startDir }: Directories,
): Promise<number> {
  const given = options.values["ps-socket"];
  const passed = given === undefined ? [] : [Number(given)];
  const server = spawn(
    process.execPath,
    [
      ...process.execArgv,
      process.argv[1] ?? "",
      ...process.argv.slice(2),
      "--no-daemon",
      "--status-fd",
      String(READY_FD),
      ...(given === undefined ? [] : ["--ps-socket", String(READY_FD + 1)]),
    ],
    { cwd: startDir, detached: true, stdio: ["ignore", "ignore", "ignore", "pipe", ...passed] },
  );
  const ready = server.stdio[READY_FD] as Readable;
  const byte = await Promise.race([
    once(ready, "data").then(() => true),
    once(ready, "end").then(() => false),
    once(server, "exit").then(() => false),
  ]);
  if (!byte) {
    throw new RepriseError("TASK_DIED", "cannot start the server in the background: it ended", {
      hint: "Its log says why; without --daemon it stays in the foreground.",
    });
  }
  writeServerPid(options, server.pid ?? 0);
  tellReady(options);
  server.unref();
  ready.destroy();
  return 0;
}
