"""Fields of KubeRay's `ray.io/v1` (RayJob, RayCluster; 1.5.1, the first with `authOptions`) and of the parts of a pod that ours use.

Written from the types behind the custom resource definitions. An operator drops a field that it does not know without a
word, so a misspelled one is only ever found by a table like this. As JSON schemas: `RAY_JOB`, `RAY_CLUSTER`.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def table(needed: str = "", **kinds: Schema | str) -> Schema:
    """An object of these fields and no others."""
    properties = {name: {"type": kind} if isinstance(kind, str) else kind for name, kind in kinds.items()}
    return {"type": "object", "properties": properties, "required": needed.split(), "additionalProperties": False}


def many(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


WORDS = {"type": "object", "additionalProperties": {"type": "string"}}
"""Values that Kubernetes wants as strings: `"0"` and not `0`."""

_SECURITY = table(runAsUser="integer", runAsGroup="integer", fsGroup="integer", runAsNonRoot="boolean")
_CONTAINER = table(
    "name image",
    name="string",
    image="string",
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    command=many({"type": "string"}),
    args=many({"type": "string"}),
    env=many(table("name", name="string", value="string", valueFrom="object")),
    ports=many(table("containerPort", name="string", containerPort="integer", protocol={"enum": ["TCP", "UDP"]})),
    resources=table(requests=WORDS, limits=WORDS),
    volumeMounts=many(table("name mountPath", name="string", mountPath="string", subPath="string", readOnly="boolean")),
    securityContext=_SECURITY,
    lifecycle="object",
)
_VOLUME = table(
    "name",
    name="string",
    emptyDir=table(medium={"enum": ["", "Memory"]}, sizeLimit="string"),
    persistentVolumeClaim=table("claimName", claimName="string", readOnly="boolean"),
    configMap="object",
    secret="object",
)
_POD = table(
    "containers",
    containers=many(_CONTAINER),
    initContainers=many(_CONTAINER),
    volumes=many(_VOLUME),
    securityContext=_SECURITY,
    tolerations=many(table(key="string", operator={"enum": ["Exists", "Equal"]}, value="string", effect="string")),
    nodeSelector=WORDS,
    affinity="object",
    serviceAccountName="string",
    terminationGracePeriodSeconds="integer",
    imagePullSecrets=many(table("name", name="string")),
    restartPolicy="string",
)
_TEMPLATE = table("spec", metadata=table(labels=WORDS, annotations=WORDS), spec=_POD)
_HEAD = table(
    "template",
    template=_TEMPLATE,
    rayStartParams=WORDS,
    resources=WORDS,
    labels=WORDS,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    headService="object",
    enableIngress="boolean",
)
_WORKERS = table(
    "groupName minReplicas maxReplicas template",
    groupName="string",
    replicas="integer",
    minReplicas="integer",
    maxReplicas="integer",
    numOfHosts="integer",
    idleTimeoutSeconds="integer",
    rayStartParams=WORDS,
    resources=WORDS,
    labels=WORDS,
    template=_TEMPLATE,
    scaleStrategy="object",
    suspend="boolean",
)
CLUSTER_SPEC = table(
    "headGroupSpec",
    rayVersion="string",
    authOptions=table(mode={"enum": ["token", "disabled"]}),
    headGroupSpec=_HEAD,
    workerGroupSpecs=many(_WORKERS),
    enableInTreeAutoscaling="boolean",
    autoscalerOptions="object",
    gcsFaultToleranceOptions="object",
    headServiceAnnotations=WORDS,
    upgradeStrategy="object",
    managedBy="string",
    suspend="boolean",
)
_JOB_SPEC = table(
    "entrypoint rayClusterSpec",
    entrypoint="string",
    rayClusterSpec=CLUSTER_SPEC,
    clusterSelector=WORDS,
    runtimeEnvYAML="string",
    metadata=WORDS,
    jobId="string",
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    submitterPodTemplate=_TEMPLATE,
    submitterConfig=table(backoffLimit="integer"),
    backoffLimit="integer",
    activeDeadlineSeconds="integer",
    shutdownAfterJobFinishes="boolean",
    ttlSecondsAfterFinished="integer",
    deletionStrategy="object",
    entrypointNumCpus="number",
    entrypointNumGpus="number",
    entrypointResources="string",
    managedBy="string",
    suspend="boolean",
)


def _resource(kind: str, spec: Schema) -> Schema:
    about = table("name", name="string", namespace="string", labels=WORDS, annotations=WORDS)
    return table(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=about,
        spec=spec,
    )


RAY_JOB = _resource("RayJob", _JOB_SPEC)
RAY_CLUSTER = _resource("RayCluster", CLUSTER_SPEC)
