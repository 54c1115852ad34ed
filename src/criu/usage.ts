// The help texts.

import { FEATURE_NAMES } from "../kernel/features.ts";

export const USAGE = `Usage:
  criu dump -t PID [OPTIONS]
  criu restore [OPTIONS]
  criu check [--feature NAME | --extra | --experimental | --all]
  criu --version

Actions:
  dump      checkpoint a process tree
  restore   restore a process tree
  check     is the kernel good enough
`;

export const OPTIONS_HELP = `Options with a star may be taken back by --no-NAME.

Directories and output:
  -D, --images-dir DIR       images (default: .)
  -W, --work-dir DIR         logs, pidfile and statistics (default: the images directory)
  -o, --log-file FILE        log, in the work directory (default: standard error)
  -v, -vN, --verbosity[=N]   1 errors, 2 warnings (default), 3 information, 4 debugging
      --display-stats *      print statistics at the end
      --pidfile FILE         write the root task's pid; the file must not exist
      --action-script PATH   run at every step; may be given several times
      --config FILE          read options from this file instead of the default ones
      --no-default-config    read no configuration files

Dump:
  -t, --tree PID             root of the tree
  -R, --leave-running        let the tasks run on
  -s, --leave-stopped        leave the tasks stopped
      --timeout SECONDS      for stopping the tasks (default: 10)
      --ghost-limit SIZE     largest deleted file that is saved; K, M, G (default: 1M)
      --link-remap *         link deleted files back that have other names

Restore:
  -d, --restore-detached *   leave as soon as the tasks run
  -s, --leave-stopped        leave the tasks stopped
      --exec-cmd -- COMMAND  become the command, as the root task's parent
      --file-validation HOW  filesize or buildid (default)
      --skip-file-rwx-check * do not compare permissions of files

Both:
  -j, --shell-job *          the tree belongs to a session that is not part of it

Other options of CRIU 4.2 are understood; those that would change the result are refused.

Features for check:
${wrapped([...FEATURE_NAMES])}
`;

function wrapped(words: string[]): string {
  const lines: string[] = [""];
  for (const word of words) {
    const line = lines.at(-1) ?? "";
    if (line.length + word.length > 76) lines.push(`  ${word}`);
    else lines[lines.length - 1] = line === "" ? `  ${word}` : `${line}, ${word}`;
  }
  return lines.join("\n");
}
