// PAGE_SERVER and PAGE_SERVER_CHLD: a page server in a process of its own. The port is chosen and listened at before, so that the
// answer can tell it. A client that wants to wait for it asks the same worker (WAIT_PID).

import { spawn, type ChildProcess } from "node:child_process";
import { constants } from "node:os";
import { trySyscall } from "../sys/ffi.ts";
import { listenTcp } from "../sys/stream.ts";
import { listenAddress } from "./page-options.ts";
import type { Session } from "./rpc-session.ts";

/** Number of the listening socket in the server. */
const LISTENER_FD = 3;

/** Servers of this worker, by pid: their wait status once they have ended. */
const started = new Map<number, { server: ChildProcess; status: Promise<number> }>();

/** Starts a server with the options of a request. */
export async function startPageServer(
  { options, directories }: Session,
  how: { readonly isChild: boolean },
): Promise<{ pid: number; port: number }> {
  const { fd, port } = listenTcp(await listenAddress(options));
  const log = options.values["log-file"];
  const words = [
    "page-server",
    "--no-default-config",
    `--images-dir=${directories.imagesDir}`,
    `--work-dir=${directories.workDir}`,
    `--verbosity=${options.verbosity}`,
    `--ps-socket=${LISTENER_FD}`,
    ...(log === undefined ? [] : [`--log-file=${log}`]),
    ...(options.flags.has("auto-dedup") ? ["--auto-dedup"] : []),
    ...(options.flags.has("lazy-pages") ? ["--lazy-pages"] : []),
  ];
  const server = spawn(process.execPath, [...process.execArgv, process.argv[1] ?? "", ...words], {
    stdio: ["ignore", "ignore", "ignore", fd],
    detached: !how.isChild,
  });
  trySyscall("close", fd);
  const pid = await pidOf(server);
  if (how.isChild) started.set(pid, { server, status: statusOf(server) });
  server.unref();
  return { pid, port };
}

/** The wait status of a server that this worker started; undefined for any other process. */
export function waitForPageServer(pid: number): Promise<number> | undefined {
  const one = started.get(pid);
  // Only now is there a reason for this process to stay.
  one?.server.ref();
  return one?.status;
}

function pidOf(server: ChildProcess): Promise<number> {
  return new Promise((resolve, reject) => {
    server.once("spawn", () => resolve(server.pid ?? -1));
    server.once("error", reject);
  });
}

function statusOf(server: ChildProcess): Promise<number> {
  return new Promise((resolve) => {
    server.once("exit", (code, signal) =>
      resolve(signal === null ? (code ?? 0) << 8 : constants.signals[signal]),
    );
  });
}
