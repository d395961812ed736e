"""Training on clusters: one container command, as a Kubernetes Job, a Kubeflow TrainJob or a SageMaker training job."""
