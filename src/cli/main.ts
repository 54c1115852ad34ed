// The command line for people: names instead of pids. Each command is a file that is loaded when it is
// asked for; this one only knows their words.

import { Command, CommanderError, InvalidArgumentError } from "commander";
import type { StandbyOptions } from "./commands/standby.ts";
import { PACKAGE_VERSION } from "../version.ts";

const USAGE_ERROR = 2;
const OUTPUT_ERROR = 1;

const AFTER_HELP = `
Example:
  reprise run --name looper -- sh -c 'while sleep 1; do date; done'
  reprise checkpoint looper && reprise restore looper && reprise logs looper

Tasks and checkpoints live in $REPRISE_HOME (/var/lib/reprise).
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such task, checkpoint or process, 4 not possible (yet).`;

void main();

async function main(): Promise<void> {
  // Who reads our output may have seen enough: `reprise ps | head -1`.
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE") return;
    process.stderr.write(`error: cannot write to standard output: ${error.code}\n`);
    process.exitCode = OUTPUT_ERROR;
  });
  const root = program();
  try {
    await root.parseAsync();
    process.exitCode ??= 0;
  } catch (error) {
    // Commander has printed its message already; help and version are no errors.
    if (error instanceof CommanderError) {
      process.exitCode = error.exitCode === 0 ? 0 : USAGE_ERROR;
      return;
    }
    const { reportError } = await import("./report.ts");
    process.exitCode = reportError(error, root.args[0] ?? "reprise");
  }
}

function program(): Command {
  const root = new Command("reprise")
    .description("Checkpoint, clone and restore running processes.")
    .version(PACKAGE_VERSION)
    .option("-v, --verbose", "print the engine's log to standard error")
    .enablePositionalOptions()
    .addHelpText("after", AFTER_HELP)
    .exitOverride()
    .hook("preAction", async (command) => {
      if (command.opts()["verbose"] !== true) return;
      const { logToStderr } = await import("./report.ts");
      logToStderr();
    });
  addLifeCommands(root);
  addStandby(root);
  addLookCommands(root);
  return root;
}

function addLifeCommands(root: Command): void {
  root
    .command("run")
    .description("start a command under a name, in the background, with its output in a log")
    .option("-n, --name <name>", "default: the program's name, numbered if taken")
    .option("--host", "among the host's processes, instead of in namespaces of its own")
    .argument("<command...>", "the command and its arguments, behind --")
    .passThroughOptions()
    .action(async (command: string[], options: { name?: string; host?: boolean }) => {
      const { run } = await import("./commands/run.ts");
      await run(command, options);
    });
  root
    .command("checkpoint")
    .description("save a task, or a container, and end it")
    .argument("<name>", "a task's name, or docker:NAME, podman:NAME, runc:ID, crun:ID")
    .option("-r, --leave-running", "let it run on")
    .option("--strict", "refuse what no image can hold, instead of a warning")
    .option("--explain", "print what would be saved, and save nothing")
    .action(
      async (
        name: string,
        options: { leaveRunning?: boolean; explain?: boolean; strict?: boolean },
      ) => {
        const { checkpoint } = await import("./commands/checkpoint.ts");
        await checkpoint(name, options);
      },
    );
  root
    .command("restore")
    .description("bring a task or container back from its newest checkpoint")
    .argument("<name>", "a task's name, or ENGINE:NAME")
    .option("-c, --checkpoint <number>", "another checkpoint than the newest")
    .option("--new-pids", "in a new pid namespace, if its pids are taken")
    .option("--explain", "print what would be done, and do nothing")
    .action(
      async (
        name: string,
        options: { checkpoint?: string; newPids?: boolean; explain?: boolean },
      ) => {
        const { restore } = await import("./commands/restore.ts");
        await restore(name, options);
      },
    );
  root
    .command("clone")
    .description("start a second task where the first one is now (or was at a checkpoint)")
    .argument("<name>", "a task's name, or ENGINE:NAME")
    .argument("<new-name>", "the second one's name; a container's without its engine")
    .option("-c, --checkpoint <number>", "from this checkpoint instead of from now")
    .action(async (name: string, newName: string, options: { checkpoint?: string }) => {
      const { clone } = await import("./commands/clone.ts");
      await clone(name, newName, options);
    });
  root
    .command("rm")
    .description("forget a task, its log and its checkpoints")
    .argument("<name...>")
    .option("-f, --force", "end it first if it runs")
    .action(async (names: string[], options: { force?: boolean }) => {
      const { remove } = await import("./commands/rm.ts");
      await remove(names, options);
    });
}

function addStandby(root: Command): void {
  root
    .command("standby")
    .description("keep engines loaded, so that criu need not start one for each checkpoint")
    .option("-d, --detach", "in the background, as soon as one is ready")
    .option("-e, --engines <number>", "how many commands they take at a time (2)", wholeNumber)
    .option("--stop", "end those that run")
    .option("--status", "tell whether they run; the exit code does, too")
    .action(async (options: StandbyOptions) => {
      const { standby } = await import("./commands/standby.ts");
      process.exitCode = await standby(options);
    });
}

function addLookCommands(root: Command): void {
  root
    .command("ps")
    .description("list the tasks")
    .option("--json", "as JSON")
    .action(async (options: { json?: boolean }) => {
      const { ps } = await import("./commands/ps.ts");
      ps(options);
    });
  root
    .command("logs")
    .description("print what a task has written")
    .argument("<name>")
    .option("-f, --follow", "wait for more, until the task ends")
    .option("-n, --lines <number>", "only the last lines", wholeNumber)
    .action(async (name: string, options: { follow?: boolean; lines?: number }) => {
      const { logs } = await import("./commands/logs.ts");
      await logs(name, options);
    });
  root
    .command("inspect")
    .description("show the checkpoints of a task, and what is in one")
    .argument("<name>")
    .option("-c, --checkpoint <number>", "another checkpoint than the newest", wholeNumber)
    .option("--json", "as JSON")
    .action(async (name: string, options: { checkpoint?: number; json?: boolean }) => {
      const { inspect } = await import("./commands/inspect.ts");
      inspect(name, options);
    });
  root
    .command("check")
    .description("tell what this machine allows, or whether a checkpoint fits it")
    .argument("[checkpoint]", "a task's name, ENGINE:NAME, or a directory with images")
    .option("-c, --checkpoint <number>", "another checkpoint than the newest")
    .action(async (what: string | undefined, options: { checkpoint?: string }) => {
      if (what === undefined) {
        const { check } = await import("./commands/check.ts");
        process.exitCode = check();
        return;
      }
      const { checkSet } = await import("./commands/check-set.ts");
      process.exitCode = await checkSet(what, options);
    });
}

function wholeNumber(text: string): number {
  if (/^\d+$/.test(text)) return Number(text);
  throw new InvalidArgumentError("It must be a whole number.");
}
