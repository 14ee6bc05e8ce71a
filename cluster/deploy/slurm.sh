#!/usr/bin/env bash
# sbatch --nodes=2 --gpus-per-node=8 slurm.sh cpr-tiny data=/shared/packed trainer.storage=/shared/runs trainer.workers=16
#
# The words are those of `vidssl train`. Submit from a shell in which the environment of vidssl is active; it, data and runs
# lie where every node sees them. One Ray node per machine, with a token that lives as long as the job; the driver runs here,
# on the first machine.
#   time limit        five minutes before it Slurm sends USR1: a checkpoint is written and the job queues again
#   node lost         Slurm queues the job again (--requeue), and the same words go on from the last checkpoint
#   scancel JOB       the last checkpoint of trainer.checkpoint_every_steps is left
#   scancel --batch --signal=TERM JOB    a checkpoint is written first, and the job ends; with USR1 it queues again
#SBATCH --job-name=vidssl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=vidssl-%j.log
set -euo pipefail

NODES_S=${VIDSSL_NODES_S:-600} # how long machines that are missing are waited for
LOCK_S=150                     # a run that a lost machine held is free 90 s after its last sign of life

say() { echo "slurm.sh: $*"; }

asked='' driver='' started=() log=ray-$SLURM_JOB_ID scratch=/tmp/ray-$SLURM_JOB_ID

# shellcheck disable=SC2329 # called by traps
ask_to_stop() { # once: a second signal would end the driver without its checkpoint
  [ -z "$asked" ] || return 0
  asked=$1
  say "got $asked: the training writes a checkpoint and stops"
  [ -z "$driver" ] || kill -TERM "$driver" 2>/dev/null || true
}

end_nodes() {
  [ ${#started[@]} -eq 0 ] || kill "${started[@]}" 2>/dev/null || true
  wait || true
}

until_listening() { # HOST PORT
  local tries=0
  until (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; do
    ((tries++ < NODES_S)) || { say "no head of Ray on $1:$2 after $NODES_S s"; exit 1; }
    kill -0 "${started[0]}" 2>/dev/null || { say "the head of Ray ended: $log-head.log"; exit 1; }
    sleep 1
  done
}

count_nodes() { # NUMBER: until so many are alive, with a line every 30 s
  python - "$1" "$NODES_S" <<'PY'
import sys, time, ray
wanted, limit = int(sys.argv[1]), float(sys.argv[2])
began = said = time.monotonic()
alive = 0
while alive < wanted:
    now = time.monotonic()
    if now - began > limit:
        sys.exit(f"slurm.sh: {alive} of {wanted} nodes after {limit:g} s; VIDSSL_NODES_S=SECONDS waits longer")
    if now - said > 30:
        said = now
        print(f"slurm.sh: waiting for nodes: {alive} of {wanted}", flush=True)
    try:
        ray.is_initialized() or ray.init(logging_level="CRITICAL", log_to_driver=False)
        alive = sum(node["Alive"] for node in ray.nodes())
    except ConnectionError:  # the head is still starting
        continue
    time.sleep(1)
print(f"slurm.sh: {alive} of {wanted} nodes, {ray.cluster_resources().get('GPU', 0):g} GPUs", flush=True)
PY
}

all_nodes() { # NUMBER: waits for them, unless the head ends or a signal comes
  local counting
  count_nodes "$1" &
  counting=$!
  while [ -z "$asked" ] && kill -0 "$counting" 2>/dev/null && kill -0 "${started[0]}" 2>/dev/null; do
    wait -n "$counting" "${started[0]}" || true
  done
  if ! kill -0 "${started[0]}" 2>/dev/null; then say "the head of Ray ended: $log-head.log"; exit 1; fi
  if [ -n "$asked" ]; then kill "$counting" 2>/dev/null || true; else wait "$counting"; fi
}

train() { # WORDS: its exit code, however many signals come meanwhile
  local code
  python -m cluster train "$@" &
  driver=$!
  while kill -0 "$driver" 2>/dev/null; do wait "$driver" || true; done
  wait "$driver" && code=0 || code=$?
  driver=''
  return "$code"
}

[ $# -gt 0 ] || { say "no recipe named; type sbatch slurm.sh RECIPE key=value …"; exit 2; }
for word in "$@"; do
  [ "$word" != --fresh ] || { say "--fresh begins again whenever the job is queued again; leave it out, or type name=OTHER"; exit 2; }
done
trap 'ask_to_stop USR1' USR1
trap 'ask_to_stop TERM' TERM
trap end_nodes EXIT

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
others=$(IFS=, && echo "${hosts[*]:1}")
step=(srun --overlap --cpus-per-task="$SLURM_CPUS_ON_NODE" --kill-on-bad-exit=0)
export RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1 RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
ip=$("${step[@]}" --nodes=1 --ntasks=1 --nodelist="${hosts[0]}" python -c 'import ray; print(ray.util.get_node_ip_address())')
port=$((20000 + SLURM_JOB_ID % 10000))
export RAY_ADDRESS=$ip:$port

say "head on ${hosts[0]} ($RAY_ADDRESS)${others:+, more nodes: $others}${SLURM_RESTART_COUNT:+, queued again $SLURM_RESTART_COUNT time(s)}"
"${step[@]}" --nodes=1 --ntasks=1 --nodelist="${hosts[0]}" ray start --head --block --node-ip-address="$ip" --port="$port" \
  --dashboard-host=127.0.0.1 --num-cpus="$SLURM_CPUS_ON_NODE" --temp-dir="$scratch" >"$log-head.log" 2>&1 &
started+=($!)
until_listening "$ip" "$port"
if [ -n "$others" ]; then
  "${step[@]}" --nodes=$((${#hosts[@]} - 1)) --ntasks=$((${#hosts[@]} - 1)) --nodelist="$others" ray start --block \
    --address="$RAY_ADDRESS" --num-cpus="$SLURM_CPUS_ON_NODE" >"$log-nodes.log" 2>&1 &
  started+=($!)
fi
all_nodes "${#hosts[@]}"

code=130
while [ -z "$asked" ]; do
  train "$@" && code=0 || code=$?
  # 2: a mistake in the words, or the lock of a machine that is gone, which is only known by waiting.
  if [ "$code" -ne 2 ] || [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || ((SECONDS > LOCK_S)); then break; fi
  sleep 20
done
trap - EXIT
end_nodes
if [ "$code" -eq 0 ] || [ "$code" -eq 130 ]; then # Ray's own logs stay where something went wrong
  "${step[@]}" --nodes="${#hosts[@]}" --ntasks="${#hosts[@]}" rm -rf "$scratch"
fi
if [ "$asked" = USR1 ] && [ "$code" -eq 130 ]; then
  say "queues again"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
