// `criu service`: listens on a unix socket and starts a worker for every connection, which speaks as `criu swrk` does. The worker
// is no child of the client, and has none of its descriptors: what needs these is refused there (rpc-session.ts).

import { spawn } from "node:child_process";
import { chmodSync, closeSync, rmSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import { AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET } from "../sys/abi/socket.ts";
import { errnoName } from "../sys/errno.ts";
import { syscall, syscallInBackground, trySyscall } from "../sys/ffi.ts";
import type { CriuOptions } from "./options.ts";
import { tellReady, writeServerPid } from "./page-options.ts";
import type { Directories } from "./paths.ts";
import { readyScripts } from "./scripts.ts";

const DEFAULT_ADDRESS = "criu_service.socket";
const BACKLOG = 16;
/** Number of the connection in a worker. */
const WORKER_FD = 3;
/** sun_path, with the null at its end. */
const LONGEST_ADDRESS = 107;

/** Runs the action: it serves until it is ended by a signal. */
export async function serviceAction(
  options: CriuOptions,
  directories: Directories,
): Promise<number> {
  if (options.flags.has("restore-detached")) {
    const { startDaemon } = await import("./daemon.ts");
    return startDaemon(options, directories);
  }
  const address = options.values.address ?? DEFAULT_ADDRESS;
  if (options.values.address === undefined) log.warn("Binding to local dir address!");
  const listener = listen(address);
  log.info(`The service socket is bound to ${address}`);
  writeServerPid(options, process.pid);
  readyScripts(options, directories)();
  tellReady(options);
  for (;;) {
    const connection = await syscallInBackground("accept4", listener, 0, 0, SOCK_CLOEXEC);
    if (connection < 0) throw new RepriseError("SYSCALL", "cannot accept a connection: accept4");
    startWorker(connection);
  }
}

/** Anyone may connect: a worker does what its own rights allow, as CRIU's does. */
function listen(address: string): number {
  const path = Buffer.from(address);
  if (path.length > LONGEST_ADDRESS) {
    throw new RepriseError("BAD_ARGUMENT", `the address ${address} is too long for a socket`, {
      hint: `At most ${LONGEST_ADDRESS} bytes. A path relative to the work directory is shorter.`,
    });
  }
  rmSync(address, { force: true });
  const socket = syscall("socket", AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  const name = Buffer.concat([Buffer.of(AF_UNIX, 0), path, Buffer.of(0)]);
  const bound = trySyscall("bind", socket, name, name.length);
  if (bound < 0) {
    throw new RepriseError("SYSCALL", `cannot listen at ${address}: bind: ${errnoName(-bound)}`, {
      syscall: "bind",
      errno: errnoName(-bound),
      hint: "The directory of --address must be there.",
    });
  }
  chmodSync(address, 0o666);
  syscall("listen", socket, BACKLOG);
  return socket;
}

function startWorker(connection: number): void {
  const words = [process.argv[1] ?? "", "service-worker", String(WORKER_FD)];
  const worker = spawn(process.execPath, [...process.execArgv, ...words], {
    stdio: ["ignore", "inherit", "inherit", connection],
  });
  closeSync(connection);
  worker.once("error", (error) => log.error(`cannot start a worker: ${error.message}`));
  worker.once("exit", (code, signal) =>
    log.info(`Worker(pid ${worker.pid}) ended with ${code ?? signal}`),
  );
}
