"""Pictures that follow a training, in JupyterLab and in a job."""
