// Configuration files: one option a line without its dashes, a value behind blanks, in double quotes when
// it has blanks itself; `#` starts a comment. They become long options that stand before the command line.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { RepriseError } from "../errors.ts";

const SYSTEM_FILE = "/etc/criu/default.conf";

/**
 * The argument lists of all configuration files that count for a command line, in the order in which
 * later ones win: the system's, the user's, CRIU_CONFIG_FILE; or the one of --config alone.
 *
 * @throws RepriseError BAD_ARGUMENT for a line that is no option with at most one value.
 */
export function configArguments(args: readonly string[], env: NodeJS.ProcessEnv): string[][] {
  const { file, useDefaults } = readFirst(args);
  if (file !== undefined) return [parseConfig(readGiven(file), file)];
  if (!useDefaults) return [];
  const user = env["HOME"] === undefined ? [] : [join(env["HOME"], ".criu", "default.conf")];
  const named = env["CRIU_CONFIG_FILE"] === undefined ? [] : [env["CRIU_CONFIG_FILE"]];
  return [SYSTEM_FILE, ...user, ...named]
    .filter((path) => existsSync(path))
    .map((path) => parseConfig(readGiven(path), path));
}

/** The long options, each with its value behind it, that the text of a configuration file stands for. */
export function parseConfig(text: string, path: string): string[] {
  return text.split("\n").flatMap((line, index) => {
    const words = parseLine(line);
    if (words !== undefined) return words;
    throw new RepriseError(
      "BAD_ARGUMENT",
      `Unsupported configuration file format: ${path}, line ${index + 1}`,
      {
        hint: 'A line holds one option without dashes and at most one value, "quoted" if it has blanks.',
      },
    );
  });
}

/** --config and --no-default-config are looked for before the options are read: files come first. */
function readFirst(args: readonly string[]): { file: string | undefined; useDefaults: boolean } {
  let file: string | undefined;
  let useDefaults = true;
  for (const [index, word] of args.entries()) {
    if (word === "--") break;
    if (word === "--no-default-config") useDefaults = false;
    else if (word === "--config") file = args[index + 1];
    else if (word.startsWith("--config=")) file = word.slice("--config=".length);
  }
  return { file, useDefaults };
}

function readGiven(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new RepriseError("BAD_ARGUMENT", `cannot read configuration file ${path}`, {
      hint: "Check the path and its permissions.",
      cause: error,
    });
  }
}

/** One line as zero, one or two arguments; undefined when it is malformed. */
function parseLine(line: string): string[] | undefined {
  const match = /^\s*([^\s#]+)(?:\s+(.*))?$/.exec(line);
  if (match === null) return /^\s*(#.*)?$/.test(line) ? [] : undefined;
  const name = `--${match[1]}`;
  const rest = (match[2] ?? "").trim();
  if (rest === "" || rest.startsWith("#")) return [name];
  const quoted = /^"((?:[^"\\]|\\.)*)"\s*(?:#.*)?$/.exec(rest);
  if (quoted !== null) return [name, (quoted[1] ?? "").replaceAll('\\"', '"')];
  const plain = /^([^\s"#][^\s#]*)\s*(?:#.*)?$/.exec(rest);
  return plain === null ? undefined : [name, (plain[1] ?? "").replaceAll('\\"', '"')];
}
