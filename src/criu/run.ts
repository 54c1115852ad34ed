// One command line of the executable that answers like CRIU. It is translated to the engine's options; all logic is
// the engine's. What an action does not need is not loaded: a runtime starts this program several times for
// one checkpoint.

import { closeSync, writeSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import { CRIU_VERSION } from "../version.ts";
import { configArguments } from "./config-file.ts";
import { asFailure } from "./failure.ts";
import { logError, logHeader, openLog } from "./log-file.ts";
import { printOut } from "./output.ts";
import { prepareKernel } from "./prepare-kernel.ts";
import { parseOptions, type CriuOptions } from "./options.ts";

const FAILURE = 1;
/** What a return of -1 from a C program's main is. */
const MINUS_ONE = 255;

/** Told before an action that may leave tasks behind, whose state Node's own end could change. */
export type OnAction = () => void;

/** Runs one command line. Returns the exit code; what goes wrong is in the log by then. */
export async function runCommand(args: readonly string[], onAction: OnAction): Promise<number> {
  try {
    return await run(args, onAction);
  } catch (error) {
    logError(asFailure(error));
    return FAILURE;
  }
}

async function run(args: readonly string[], onAction: OnAction): Promise<number> {
  openLog({ verbosity: 2 });
  if (wantsHelp(args)) return usage({ full: true });
  const options = parseOptions([...configArguments(args, process.env), args]);
  if (options.flags.has("help")) return usage({ full: true });
  if (options.flags.has("version")) {
    printOut(`Version: ${CRIU_VERSION.major}.${CRIU_VERSION.minor}\n`);
    return 0;
  }
  if (options.words[0] === "swrk") return serveFd(options, { worker: "swrk", onAction });
  // What `criu service` starts for a connection.
  if (options.words[0] === "service-worker")
    return serveFd(options, { worker: "service", onAction });
  // What `reprise standby` starts, and what that starts.
  if (options.words[0] === "standby-keeper") {
    const { keep } = await import("./standby/keeper.ts");
    return keep(options.words.slice(1));
  }
  if (options.words[0] === "standby-worker") {
    const { work } = await import("./standby/worker.ts");
    return work(options.words.slice(1));
  }
  // What stands between a server and the network: see tls.ts.
  if (options.words[0] === "tls-bridge") {
    const { bridge } = await import("./tls.ts");
    return bridge(options.words[1] === "server" ? "server" : "client", options);
  }
  checkWords(options);
  for (const fd of options.lists.close ?? []) closeQuietly(Number(fd));
  const [action = ""] = options.words;
  switch (action) {
    case "":
      return usage({ full: false });
    case "dump":
    case "pre-dump":
    case "dedup":
    case "page-server":
    case "service":
    case "cpuinfo":
    case "lazy-pages":
    case "restore":
      return runWithImages(action, options, onAction);
    case "check": {
      openLog({ verbosity: options.verbosity, file: options.values["log-file"] });
      const { check } = await import("./check.ts");
      return check(options);
    }
    case "exec":
    case "show":
      logError(
        new RepriseError("UNSUPPORTED", `the action ${action} is gone`, {
          hint: "crit shows images.",
        }),
      );
      return MINUS_ONE;
    default:
      throw unknownAction(action);
  }
}

/** Clients start this with a socket that they made. The number may be any. */
async function serveFd(
  { words }: CriuOptions,
  how: { readonly worker: "swrk" | "service"; readonly onAction: OnAction },
): Promise<number> {
  const [, fd = "", ...rest] = words;
  if (!/^\d+$/.test(fd) || rest.length > 0) {
    writeSync(STDERR, "Usage: criu swrk <fd>\n");
    return FAILURE;
  }
  const { serve } = await import("./swrk.ts");
  try {
    return await serve(Number(fd), how);
  } catch (error) {
    logError(asFailure(error));
    return MINUS_ONE;
  }
}

const STDERR = 2;

const FAILED = {
  dump: "Dumping FAILED.",
  "pre-dump": "Pre-dumping FAILED.",
  dedup: "Deduplicating FAILED.",
  "page-server": "Page transfer FAILED.",
  "lazy-pages": "Filling memory FAILED.",
  restore: "Restoring FAILED.",
  service: "Serving FAILED.",
  cpuinfo: "Looking at the processor FAILED.",
} as const;

async function runWithImages(
  action: keyof typeof FAILED,
  options: CriuOptions,
  onAction: OnAction,
): Promise<number> {
  const { enterDirectories } = await import("./paths.ts");
  const directories = enterDirectories(options);
  if (action === "restore" || action === "dump") onAction();
  if (action === "dump") await prepareKernel();
  openLog({ verbosity: options.verbosity, file: options.values["log-file"] });
  logHeader();
  try {
    const { noteOptions } = await import("./support.ts");
    noteOptions(options);
    if (options.flags.has("stream")) {
      const { refuseStream } = await import("./stream.ts");
      refuseStream(options, action);
    }
    if (action === "dump") {
      const { dump } = await import("./dump.ts");
      return await dump(options, directories);
    }
    if (action === "pre-dump") {
      const { preDumpAction } = await import("./pre-dump.ts");
      return await preDumpAction(options, directories);
    }
    if (action === "dedup") {
      const { dedupAction } = await import("./dedup.ts");
      return dedupAction(directories);
    }
    if (action === "cpuinfo") {
      const { cpuinfoAction } = await import("./cpuinfo.ts");
      return cpuinfoAction(options, directories);
    }
    if (action === "service") {
      const { serviceAction } = await import("./service.ts");
      return await serviceAction(options, directories);
    }
    if (action === "lazy-pages") {
      const { lazyPagesAction } = await import("./lazy-pages.ts");
      return await lazyPagesAction(options, directories);
    }
    if (action === "page-server") {
      const { pageServerAction } = await import("./page-server.ts");
      return await pageServerAction(options, directories);
    }
    const { restoreAction } = await import("./restore.ts");
    return await restoreAction(options, directories);
  } catch (error) {
    logError(asFailure(error));
    const { log } = await import("../log.ts");
    log.error(FAILED[action]);
    return FAILURE;
  } finally {
    closeQuietly(directories.imagesDirFd);
  }
}

/** Help comes before everything that could be wrong, such as a broken configuration file. */
function wantsHelp(args: readonly string[]): boolean {
  const end = args.indexOf("--");
  return (end < 0 ? args : args.slice(0, end)).some((word) => word === "--help" || word === "-h");
}

async function usage(how: { readonly full: boolean }): Promise<number> {
  const { USAGE, OPTIONS_HELP } = await import("./usage.ts");
  printOut(how.full ? `${USAGE}\n${OPTIONS_HELP}` : `${USAGE}\nTry -h|--help for more info\n`);
  return how.full ? 0 : FAILURE;
}

/** One action and nothing behind it, but the words that some actions take. */
function checkWords(options: CriuOptions): void {
  const [action, ...rest] = options.words;
  const hasCommand = options.flags.has("exec-cmd");
  if (options.flags.has("ms")) throw new RepriseError("BAD_ARGUMENT", "the option --ms is gone");
  if (hasCommand && action !== "restore") {
    throw new RepriseError("BAD_ARGUMENT", "--exec-cmd is available for the restore action only");
  }
  if (hasCommand && rest.length === 0) {
    throw new RepriseError("BAD_ARGUMENT", "--exec-cmd requires a command", {
      hint: "Put it behind --: criu restore --exec-cmd -- COMMAND.",
    });
  }
  const takesWords = hasCommand || action === "cpuinfo";
  if (!takesWords && rest.length > 0) {
    const plural = rest.length > 1 ? "s" : "";
    throw new RepriseError(
      "BAD_ARGUMENT",
      `excessive parameter${plural} for command ${action}: ${rest.join(" ")}`,
    );
  }
}

function unknownAction(action: string): RepriseError {
  return new RepriseError("BAD_ARGUMENT", `unknown command: ${action}`, {
    hint: "criu --help lists the actions.",
  });
}

function closeQuietly(fd: number): void {
  try {
    closeSync(fd);
  } catch {
    // Not open: then it need not be closed.
  }
}
